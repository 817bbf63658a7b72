"""MNIST and CelebA through tensorflow-datasets, which here prepares and reads its own format.

Mocked: the source of the builders' images (``_split_generators``, which would download); and
``code_path``, where they look for checksums of downloads, with a package that tensorflow-datasets
does not depend on.
"""

import io

import numpy as np
import pytest

from data_pipeline.attributes import tfds_sets
from data_pipeline.attributes.folder import CELEBA_TERMS
from data_pipeline.attributes.labelled import LabelledExamples
from data_pipeline.attributes.open import describe_attribute_data, open_attribute_data
from data_pipeline.attributes.tfds_sets import DataSetError, open_celeb_a, open_mnist
from data_pipeline.records.shard_reading import import_tfds

TRAIN, TEST = 23, 7
NAMES = ("Eyeglasses", "Smiling", "Young")  # of CelebA's 40


def digit(i):
    return np.full((28, 28, 1), 5 * i, np.uint8)


def face(i):
    """Its central square has one shade, with a white bar above and below."""
    image = np.full((218, 178, 3), 5 * i, np.uint8)
    image[:20] = image[198:] = 255
    return image


def digits(n):
    for i in range(n):
        yield i, {"image": digit(i), "label": i % 10}


def faces(builder, n):
    features = builder.info.features
    for i in range(n):
        attributes = dict.fromkeys(features["attributes"], False)
        attributes |= {name: bool(i >> bit & 1) for bit, name in enumerate(NAMES)}
        others = {key: dict.fromkeys(features[key], 0) for key in ("landmarks", "identity")}
        yield f"{i:06d}.jpg", {"image": jpeg(face(i)), "attributes": attributes, **others}


def jpeg(image):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=100)
    return io.BytesIO(file.getvalue())


@pytest.fixture
def offline(monkeypatch):
    """The data sets can be "downloaded" without a network; returns their builders' classes."""
    classes = {name: import_tfds().builder_cls(name) for name in ("mnist", "celeb_a")}
    examples = {
        "mnist": lambda self, _: {"train": digits(TRAIN), "test": digits(TEST)},
        "celeb_a": lambda self, _: {
            "train": faces(self, TRAIN),
            "validation": faces(self, 2),
            "test": faces(self, TEST),
        },
    }
    for name, cls in classes.items():
        monkeypatch.setattr(cls, "_split_generators", examples[name])
        cls.code_path = None  # monkeypatch would read it, and that fails
    yield classes
    for cls in classes.values():
        del cls.code_path


def shades(part):
    """The index of each image, from its centre."""
    middle = part.shape[0] // 2
    return [round(int(part.images[i][middle, middle, 0]) / 5) for i in range(len(part))]


@pytest.mark.parametrize("open_it", [open_mnist, open_celeb_a])
def test_nothing_is_downloaded_unless_asked(tmp_path, capsys, open_it):
    with pytest.raises(DataSetError, match="is not in .*: fetch it by --config.download=True, or"):
        open_it(28, str(tmp_path))
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


def test_mnist_is_fetched_and_kept(offline, tmp_path, monkeypatch):
    data = open_mnist(28, str(tmp_path), download=True)
    assert data.vocabulary.groups == {"digit": tuple(f"digit={i}" for i in range(10))}
    assert (data.train.shape, data.mirror, data.terms) == ((28, 28, 1), False, "")
    for part, count in ((data.train, TRAIN), (data.test, TEST)):
        order = shades(part)  # tfds shuffles what it prepares
        assert sorted(order) == list(range(count)) and part.values.dtype == np.int8
        np.testing.assert_array_equal(part.images, [digit(i) for i in order])
        np.testing.assert_array_equal(part.values, np.eye(10)[np.array(order) % 10])
    assert data.train.fingerprint != data.test.fingerprint
    assert sorted(path.name for path in (tmp_path / "persongen_jax").iterdir()) == [
        "mnist_28_test.npy",
        "mnist_28_test_values.npy",
        "mnist_28_train.npy",
        "mnist_28_train_values.npy",
    ]
    example = LabelledExamples(data.train, seed=0).example(3)
    assert example["pixel_values"].dtype == np.float32 and example["attributes"].sum() == 1

    monkeypatch.setattr(tfds_sets, "_examples", None)  # from now on, decoding fails
    again = open_attribute_data("mnist", size=28, data_dir=str(tmp_path))
    assert isinstance(again.train.images, np.memmap)
    np.testing.assert_array_equal(again.train.images, data.train.images)
    np.testing.assert_array_equal(again.test.values, data.test.values)
    assert again.train.fingerprint == data.train.fingerprint


def test_celeb_a_is_downloaded_after_printing_its_terms(offline, tmp_path, capsys, monkeypatch):
    def generators(self, _):
        assert capsys.readouterr().out.startswith(CELEBA_TERMS)
        return {"train": faces(self, TRAIN), "test": faces(self, TEST)}

    monkeypatch.setattr(offline["celeb_a"], "_split_generators", generators)
    data = open_celeb_a(16, str(tmp_path), download=True)
    check_celeb_a(data)


def test_celeb_a_in_the_default_format_of_tfds(offline, tmp_path, capsys):
    """TensorFlow reads that format."""
    builder = import_tfds().builder("celeb_a", data_dir=tmp_path, file_format="tfrecord")
    builder.download_and_prepare()
    capsys.readouterr()
    check_celeb_a(open_celeb_a(16, str(tmp_path)))
    assert CELEBA_TERMS not in capsys.readouterr().out  # only open_attribute_data prints them
    chosen = open_attribute_data(
        "celeb_a", size=16, attributes=("young", "smiling"), data_dir=str(tmp_path)
    )
    assert chosen.vocabulary.names == ("Young", "Smiling")
    assert CELEBA_TERMS in capsys.readouterr().out


def check_celeb_a(data):
    # These are tensorflow-datasets' names, which describe the set if it is not prepared.
    assert data.vocabulary.names == tuple(
        import_tfds().builder("celeb_a").info.features["attributes"]
    )
    assert describe_attribute_data("celeb_a", size=16).vocabulary == data.vocabulary
    assert (data.train.shape, data.mirror, data.terms) == ((16, 16, 3), True, CELEBA_TERMS)
    places = [data.vocabulary.names.index(name) for name in NAMES]
    for part, count in ((data.train, TRAIN), (data.test, TEST)):
        order = shades(part)
        assert sorted(order) == list(range(count))
        for i, image, values in zip(order, part.images, part.values, strict=True):
            assert np.ptp(image) <= 2  # without the bars
            assert values[places].tolist() == [i >> bit & 1 for bit in range(3)]
            assert values.sum() == values[places].sum()


def test_broken_cache_files_are_rewritten(offline, tmp_path):
    data = open_mnist(28, str(tmp_path), download=True)
    expected = np.array(data.train.images)
    kept = tmp_path / "persongen_jax" / "mnist_28_train.npy"
    for broken in (kept.read_bytes()[:-1], b"", None):
        kept.unlink()
        if broken is not None:
            kept.write_bytes(broken)
        np.testing.assert_array_equal(open_mnist(28, str(tmp_path)).train.images, expected)
    assert len(list(kept.parent.iterdir())) == 4
    # Of another size, next to them.
    assert open_mnist(14, str(tmp_path)).train.shape == (14, 14, 1)
    assert len(list(kept.parent.iterdir())) == 8


def test_no_partial_file_is_left(offline, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(tfds_sets, "square", stop)
    with pytest.raises(KeyboardInterrupt):
        open_mnist(28, str(tmp_path), download=True)
    assert not list((tmp_path / "persongen_jax").iterdir())
    (tmp_path / "persongen_jax").rmdir()
    (tmp_path / "persongen_jax").touch()
    with pytest.raises(DataSetError, match="persongen_jax: the decoded images cannot be stored th"):
        open_mnist(28, str(tmp_path))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConnectionError("no route\nto host"),
            r"mnist could not be fetched \(no route\): try agai",
        ),
        (ValueError(), r"could not be fetched \(ValueError\): try again later, or put"),
        (
            ModuleNotFoundError(name="absent"),
            "tensorflow-datasets needs absent; pip install absent",
        ),
    ],
)
def test_a_failed_download_is_reported_in_one_sentence(
    offline, tmp_path, monkeypatch, error, message
):
    def generators(self, _):
        raise error

    monkeypatch.setattr(offline["mnist"], "_split_generators", generators)
    with pytest.raises(DataSetError, match=message) as caught:
        open_mnist(28, str(tmp_path), download=True)
    assert "\n" not in str(caught.value)


def test_without_tensorflow_datasets(monkeypatch):
    def absent():
        raise ImportError("shards need tensorflow-datasets")

    monkeypatch.setattr(tfds_sets, "import_tfds", absent)
    with pytest.raises(ImportError, match="config.data='mnist' needs tensorflow-datasets: pip"):
        open_mnist()
