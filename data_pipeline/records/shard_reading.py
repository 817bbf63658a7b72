"""Reads identity shards, written by data_pipeline/shards.py, as records and an image reader.

Opening them needs neither TensorFlow nor decoding.
"""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.pictures.reading import ImageError, load_image
from data_pipeline.records.schema import Record, from_entry
from data_pipeline.text_files import parse_json_lines, read_text

INDEX, INFO = "index.jsonl", "dataset_info.json"
FORMAT = "identity shards 1"
SPLIT = "train"


class ShardError(ValueError):
    """Shards that cannot be written or opened; the message names the folder and the remedy."""


def is_shards(folder: str | Path) -> bool:
    return any((Path(folder) / name).is_file() for name in (INDEX, INFO))


def content_of_shards(folder: str | Path) -> str | None:
    """The digest of all images that the index holds; None if it has none or cannot be read."""
    try:
        with open(Path(folder) / INDEX, encoding="utf-8") as file:
            return json.loads(file.readline()).get("content")
    except (OSError, ValueError, AttributeError):
        return None


def open_shards(
    folder: str | Path, trigger_word: str = "img"
) -> tuple[list[Record], Callable[[str], np.ndarray]]:
    """Records and ``read_image``, as from data_pipeline.records.sources.open_records."""
    folder = Path(folder)
    records = _read_index(folder, trigger_word)
    builder = import_tfds().builder_from_directory(str(folder))
    split = builder.info.splits[SPLIT]
    absent = [str(path) for path in split.filepaths if not Path(path).is_file()]
    if absent:
        raise ShardError(f"{folder}: {len(absent)} files are missing: {', '.join(absent)}")
    if split.num_examples != len(records):
        raise ShardError(
            f"{folder}: {split.num_examples} images, but {len(records)} lines in {INDEX}; write "
            "the shards again"
        )
    undecoded = {"image": import_tfds().decode.SkipDecoding()}
    pictures = builder.as_data_source(SPLIT, decoders=undecoded)
    place = {}
    for i, record in enumerate(records):
        place.setdefault(record.image, i)  # a file with two captions is stored twice

    def read_image(name: str) -> np.ndarray:
        if name not in place:
            raise ImageError(f"{name}: no such image in {folder}")
        try:
            features = pictures[place[name]]
        except Exception as error:  # not the image's fault, so do not substitute another
            raise ShardError(f"{folder}: record {place[name]} cannot be read ({error})") from error
        if features["key"].decode() != name:
            raise ShardError(f"{folder}: {INDEX} belongs to other shards; write them again")
        return load_image(features["image"], name)

    return records, read_image


def _read_index(folder: Path, trigger_word: str) -> list[Record]:
    path = folder / INDEX
    try:
        head, *entries = (value for _, value in parse_json_lines(read_text(path), path))
        if head["format"] != FORMAT:
            raise ShardError(f"{path}: {head['format']!r} is not the format read here, {FORMAT!r}")
        records = [from_entry(entry) for entry in entries]
        expected, marked = head["records"], head["trigger_word"]
    except FileNotFoundError:
        raise ShardError(f"{path}: missing; `python -m data_pipeline.shards` writes it") from None
    except ShardError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ShardError(f"{path}: cannot be read ({error!r}); write the shards again") from error
    if len(records) != expected:
        raise ShardError(f"{path}: {len(records)} of {expected} lines; write the shards again")
    if marked.lower() != trigger_word.lower():
        raise ShardError(
            f'{folder}: the trigger word in its captions is "{marked}", not "{trigger_word}"'
        )
    return records


@functools.cache
def import_tfds() -> Any:
    os.environ.setdefault("NO_GCE_CHECK", "true")  # otherwise it queries the network about its host
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            "shards need tensorflow-datasets: pip install 'persongen_jax[data]', or give a folder "
            "with a manifest.jsonl, which needs neither"
        ) from error
    return tensorflow_datasets
