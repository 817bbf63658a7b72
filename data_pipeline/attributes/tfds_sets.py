"""MNIST and CelebA from tensorflow-datasets, decoded once and cached next to its files.

``DATA_DIR/persongen_jax/celeb_a_64_train.npy`` and ``..._values.npy`` make the next start fast.
Reading data fetched with ``download`` does not need TensorFlow itself.
"""

import io
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipeline.attributes.folder import CELEBA_TERMS
from data_pipeline.attributes.folder_pictures import square
from data_pipeline.attributes.labelled import AttributeData, LabelledImages
from data_pipeline.attributes.vocabulary import Vocabulary
from data_pipeline.files import atomic_write
from data_pipeline.pictures.reading import load_image
from data_pipeline.records.shard_reading import INFO, import_tfds

CACHE = "persongen_jax"
MNIST = Vocabulary.of_classes("digit", tuple(map(str, range(10))))
CELEB_A = Vocabulary(
    (
        *("5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald"),
        *("Bangs", "Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair"),
        *("Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair"),
        *("Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache"),
        *("Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose"),
        *("Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair"),
        *("Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick"),
        *("Wearing_Necklace", "Wearing_Necktie", "Young"),
    )
)
AT_ONCE = 1024  # images in memory
SPLITS = ("train", "test")


class DataSetError(ValueError):
    """A data set that is missing or cannot be downloaded; the message has the remedy."""


def open_mnist(size: int = 28, data_dir: str = "", *, download: bool = False) -> AttributeData:
    """MNIST: grey images [size, size, 1], originally of size 28, and the class ``digit``.

    Args:
        data_dir: tensorflow-datasets' folder; "" for its default.
        download: download the data set if it is missing (11 MB).

    Raises:
        DataSetError: it is missing, or could not be downloaded.
    """
    builder = _prepared("mnist", data_dir, download)
    classes = MNIST.values_of_classes(range(len(MNIST)))
    train, test = (
        _open_split(builder, split, (size, size, 1), lambda example: classes[example["label"]])
        for split in SPLITS
    )
    return AttributeData(MNIST, train, test)


def open_celeb_a(size: int = 64, data_dir: str = "", *, download: bool = False) -> AttributeData:
    """CelebA: colour images [size, size, 3] of their central 178x178, and its 40 attributes.

    Arguments and errors as for open_mnist; downloads 1.4 GB, after printing its terms.
    """
    builder = _prepared("celeb_a", data_dir, download, terms=CELEBA_TERMS)

    def values_of(example):
        return np.array([example["attributes"][name] for name in CELEB_A.names], np.int8)

    train, test = (_open_split(builder, split, (size, size, 3), values_of) for split in SPLITS)
    return AttributeData(CELEB_A, train, test, terms=CELEBA_TERMS, mirror=True)


# ---- fetching ----------------------------------------------------------------------------------


def _prepared(name: str, data_dir: str, download: bool, terms: str = ""):
    """The builder of a data set that exists, or that may be downloaded."""
    try:
        tfds = import_tfds()
    except ImportError as error:
        raise ImportError(
            f"config.data={name!r} needs tensorflow-datasets: pip install 'persongen_jax[data]'"
        ) from error
    builder = tfds.builder(name, data_dir=data_dir or None)
    if Path(builder.data_dir, INFO).is_file():
        return builder
    if not download:
        raise DataSetError(
            f"{name} is not in {builder.data_dir_root}: fetch it by --config.download=True, or "
            "name the folder of tensorflow-datasets that holds it by --config.data_dir"
        )
    if terms:
        print(terms)
    return _fetch(tfds, name, data_dir)


def _fetch(tfds, name: str, data_dir: str):
    # Prefer a format that is read without TensorFlow.
    builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
    try:
        # Not tfds' own prepared copy, which has another format.
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_config=config)
    except ImportError as error:
        package = error.name or error
        raise DataSetError(
            f"{name} cannot be fetched: tensorflow-datasets needs {package}; pip install {package}"
        ) from error
    except Exception as error:  # it raises almost anything: network, disk, checksums
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataSetError(
            f"{name} could not be fetched ({reason}): try again later, or put its pictures and a "
            "table into a folder and give that as config.data"
        ) from error
    return builder


# ---- reading -----------------------------------------------------------------------------------


def _open_split(builder, split: str, shape, values_of: Callable) -> LabelledImages:
    """A split from the cache, which is written if it is missing.

    Args:
        shape: (size, size, c) of the images.
        values_of: returns the int8 values [K] of an example.
    """
    folder = Path(builder.data_dir_root) / CACHE
    name, count = f"{builder.name}_{shape[0]}_{split}", builder.info.splits[split].num_examples
    paths = [folder / f"{name}.npy", folder / f"{name}_values.npy"]
    images, values = map(_load, paths)
    if images is None or values is None or images.shape != (count, *shape) or len(values) != count:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(builder, split, (count, *shape), values_of, *paths)
        except OSError as error:
            raise DataSetError(
                f"{folder}: the decoded images cannot be stored there ({error.strerror or error}): "
                "make room and make it writable, or name another folder by --config.data_dir"
            ) from error
        images, values = map(_load, paths)
    return LabelledImages(images, np.array(values), f"{name}-{builder.version}-{count}")


def _load(path: Path) -> np.ndarray | None:
    """A file's array, memory-mapped; None if it is missing or incomplete."""
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None


def _write(builder, split, shape, values_of, images_path: Path, values_path: Path) -> None:
    """Decode a split into two files, writing the images' file last."""
    values = []

    def picture(example):
        return square(load_image(example["image"], f"a picture of {builder.name}"), *shape[2:])

    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with (
        atomic_write(images_path) as partial,
        partial.open("wb") as file,  # mapped into memory, a full disk would end the process
        ThreadPoolExecutor() as pool,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        examples, title = _examples(builder, split), f"decoding {builder.name} {split}"
        examples = iter(tqdm(examples, title, shape[0], disable=None))
        while chunk := list(itertools.islice(examples, AT_ONCE)):
            file.writelines(map(np.ndarray.tobytes, pool.map(picture, chunk)))
            values += map(values_of, chunk)
        with atomic_write(values_path) as partial_values:
            partial_values.write_bytes(_npy(np.array(values, np.int8)))


def _examples(builder, split: str) -> Iterator[dict]:
    """The split's examples, with images as encoded bytes."""
    tfds = import_tfds()
    undecoded = {"image": tfds.decode.SkipDecoding()}
    try:
        source = builder.as_data_source(split, decoders=undecoded)
    except NotImplementedError:  # a format without random access, which TensorFlow reads
        yield from tfds.as_numpy(builder.as_dataset(split, decoders=undecoded))
    else:
        yield from (source[i] for i in range(len(source)))


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
