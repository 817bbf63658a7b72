"""Identity shards: a data set in a few large files, as a tensorflow-datasets builder directory.

    python -m data_pipeline.shards --from path/to/photographs --out path/to/shards
    python -m data_pipeline.shards --from "people:in_train?identities=200" --out path/to/shards

reads a folder with a manifest.jsonl, or draws people (data_pipeline/records/sources.py), checks
everything and writes array_record files: one record per image, holding its original file (drawn
ones as PNG) and everything that is known about it. Absent boxes and points are NaN. array_record
supports random access, which the loader needs; TFRecord does not. ``index.jsonl`` holds everything
except the images, a line per record in their order, so that opening the set reads no image.

Neither writing nor reading needs TensorFlow itself. Other programs open the folder with

    tfds.builder_from_directory("path/to/shards").as_data_source("train")
"""

import argparse
import contextlib
import functools
import io
import json
import logging
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_pipeline.cli import command
from data_pipeline.pictures.reading import ImageError, load_image
from data_pipeline.prompts import split_at_trigger
from data_pipeline.records.manifest import (
    CLIPPED,
    COPIES,
    DROPPED,
    SINGLE,
    read_manifest,
    usable_records,
)
from data_pipeline.records.schema import Record, to_entry
from data_pipeline.records.shard_reading import (
    FORMAT,
    INDEX,
    SPLIT,
    ShardError,
    import_tfds,
    is_shards,
)
from data_pipeline.records.sources import PEOPLE, open_records

log = logging.getLogger(__name__)

UNDECODABLE = "images skipped because they do not decode"


# ---- Writing -----------------------------------------------------------------------------------


def write_shards(
    source: str, out: str | Path, *, shards: int | None = None, trigger_word: str = "img"
) -> Counter:
    """Write the folder ``out`` from a folder with a manifest or a "people:" text.

    ``shards`` is the number of files; by default one per 64 MB or more. Returns the counts of
    skipped images and fixes. ``out`` is created atomically when everything is written: an
    interrupted run leaves at most ``<out>.partial``, which the next one removes.
    """
    out, counts = Path(out), Counter()
    if shards is not None and shards < 1:
        raise ShardError(f"{shards} shards: at least one is needed")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ShardError(f"{out}: exists already; remove it, or write elsewhere")
    import_tfds()  # fails before the long work, not after
    records, read_file = _read(str(source), trigger_word, counts)
    records = _checked(records, read_file, trigger_word, counts)
    records = usable_records(records, source, counts)

    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        built, content = _build(records, read_file, partial, shards)
        _write_index(built / INDEX, records, trigger_word, content)
        built.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    counts["pictures"], counts["people"] = len(records), len({r.identity for r in records})
    counts["shards"] = len(list(out.glob("*.array_record*")))
    return counts


def _read(source: str, trigger_word: str, counts: Counter):
    """The records with their names in the shards, and a function that reads a name's file."""
    if source.startswith(PEOPLE):
        records, read_image = open_records(source, trigger_word)
        return records, lambda name: _png(read_image(name))
    folder = Path(source)
    if is_shards(folder):
        raise ShardError(f"{folder}: these are shards already; give the folder of photographs")
    records = [
        replace(record, image=Path(os.path.relpath(record.image, folder)).as_posix())
        for record in read_manifest(folder, trigger_word, counts)
    ]
    return records, lambda name: (folder / name).read_bytes()


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _checked(
    records: list[Record], read_file: Callable[[str], bytes], trigger_word: str, counts: Counter
) -> list[Record]:
    """The records whose image decodes, completed from the image."""

    attached = next((record for record in records if record.images), None)
    if attached:
        raise ShardError(
            f"{attached.image}: has additional images ({', '.join(attached.images or ())}), which "
            "shards have no place for; train from the folder itself"
        )

    def check(record: Record) -> Record | ImageError:
        try:
            image = load_image(read_file(record.image), record.image)
        except ImageError as error:
            return error
        before, _ = split_at_trigger(record.caption, trigger_word)
        size = record.original_size or image.shape[:2]
        return replace(
            record,
            class_word=record.class_word or before.split()[-1],
            original_size=tuple(size),
            crop=record.crop or (0, 0, size[1], size[0]),
        )

    good = []
    with ThreadPoolExecutor() as pool:
        for result in tqdm(pool.map(check, records), "checking", len(records), disable=None):
            if isinstance(result, ImageError):
                counts[UNDECODABLE] += 1
                log.warning("skipped image %d: %s", counts[UNDECODABLE], result)
            else:
                good.append(result)
    return good


def _build(records: list[Record], read_file, folder: Path, shards: int | None) -> tuple[Path, str]:
    """Build under ``folder``; return the folder of the files and a digest of all images."""
    tfds = import_tfds()
    tfds.disable_progress_bar()
    builder = _builder_class()(records, read_file, data_dir=folder, file_format="array_record")
    config = tfds.download.DownloadConfig(
        num_shards=shards and min(shards, len(records)), try_download_gcs=False
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it would print about downloads and ".partial"
        builder.download_and_prepare(download_config=config)
    return Path(builder.data_path), f"{builder.content:08x}"


def _write_index(path: Path, records: list[Record], trigger_word: str, content: str) -> None:
    head = {"format": FORMAT, "records": len(records), "trigger_word": trigger_word}
    head["content"] = content
    with path.open("w", encoding="utf-8") as file:
        for entry in (head, *map(to_entry, records)):
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


@functools.cache
def _builder_class():
    tfds = import_tfds()
    from tensorflow_datasets.core.writer import ExampleWriter
    from tensorflow_datasets.proto import tf_example_pb2

    def numbers(*shape, dtype=np.float32):
        return tfds.features.Tensor(shape=shape, dtype=dtype)

    class InOneOrder(ExampleWriter):
        """The same records make the same bytes: a protobuf map has an order of each process."""

        def write(self, path, examples):
            read = tf_example_pb2.Example.FromString
            ordered = ((k, read(e).SerializeToString(deterministic=True)) for k, e in examples)
            return super().write(path, ordered)

    class IdentityShards(tfds.core.GeneratorBasedBuilder):
        """Images of people: identity, captions, face box, points, original size and crop."""

        VERSION = tfds.core.Version("1.0.0")
        # tfds would look for checksums of downloads there, using a package it does not depend on.
        code_path = None

        def __init__(self, records: list[Record], read_file, **options):
            self._records, self._read_file = records, read_file
            self.content = 0  # CRC-32 of all files so far
            super().__init__(**options)

        def _info(self):
            texts = ("key", "identity", "caption", "background", "body", "class_word")
            return tfds.core.DatasetInfo(
                builder=self,
                description=self.__doc__,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(None, None, 3)),
                        **{name: tfds.features.Text() for name in texts},
                        "face_box": numbers(4),
                        "landmarks": numbers(5, 2),
                        "keypoints": numbers(12, 2),
                        "visibility": numbers(12, dtype=np.bool_),
                        "original_size": numbers(2, dtype=np.int32),
                        "crop": numbers(4),
                    }
                ),
                disable_shuffling=True,  # line n of the index is record n
            )

        def _split_generators(self, dl_manager):
            return {SPLIT: self._generate_examples()}

        def _example_writer(self):
            return InOneOrder(self.info.file_format)

        def _generate_examples(self):
            for i, record in enumerate(tqdm(self._records, "writing", disable=None)):
                file = self._read_file(record.image)
                self.content = zlib.crc32(file, self.content)
                yield i, _features(record, file)

    IdentityShards.__module__ = __name__
    return IdentityShards


def _features(record: Record, file: bytes) -> dict:
    def or_absent(values, *shape):
        return np.full(shape, np.nan, np.float32) if values is None else np.float32(values)

    return {
        "image": io.BytesIO(file),
        "key": record.image,
        "identity": record.identity,
        "caption": record.caption,
        "background": record.background,
        "body": record.body,
        "class_word": record.class_word,
        "face_box": or_absent(record.face_box, 4),
        "landmarks": or_absent(record.landmarks, 5, 2),
        "keypoints": or_absent(record.keypoints, 12, 2),
        "visibility": np.array(record.visibility or [False] * 12),
        "original_size": np.asarray(record.original_size, np.int32),
        "crop": np.asarray(record.crop, np.float32),
    }


# ---- The command -------------------------------------------------------------------------------


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.shards",
        description="Turns a folder of photographs with a manifest, or drawn people, into shards.",
    )
    parser.add_argument(
        "--from",
        required=True,
        dest="source",
        metavar="DATA",
        help='folder with a manifest.jsonl, or "people:SPLIT?identities=200&pictures=16"',
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--shards", type=int, metavar="N", help="number of files (default: by size)"
    )
    parser.add_argument("--trigger-word", default="img", metavar="WORD", help="default: img")
    args = parser.parse_args(argv)
    counts = write_shards(args.source, args.out, shards=args.shards, trigger_word=args.trigger_word)
    changes = ", ".join(
        f"{counts[name]} {name}" for name in (UNDECODABLE, CLIPPED, DROPPED, SINGLE, COPIES)
    )
    print(
        f"{args.out}: {counts['pictures']} images of {counts['people']} people in "
        f"{counts['shards']} shards; {changes}"
    )


if __name__ == "__main__":
    main()
