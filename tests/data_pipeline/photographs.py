"""Example photographs, and helpers that find out which images an example was made from."""

import itertools
import json

import numpy as np
from PIL import Image as PillowImage

from data_pipeline.examples.conditions import References, Text
from data_pipeline.examples.fields import FaceBox, Image, TimeIds, flatten
from data_pipeline.examples.source import ExampleSource
from data_pipeline.pictures.reading import load_image
from data_pipeline.pictures.transforms import clip_preprocess, square_face_crop

SIZE, ID_SIZE = 16, 14


def photograph_fields(tokenizers, streams=("text",), id_size=ID_SIZE, **text) -> tuple:
    """The fields of an example for an identity method; ``text``: options of Text."""
    prompts = Text(tokenizers, streams, **text)
    return Image(), prompts, References(id_size), TimeIds(), FaceBox()


def photograph_source(
    records, tokenizers, *, streams=("text",), id_size=ID_SIZE, seed=3, size=SIZE, **options
) -> ExampleSource:
    fields = photograph_fields(tokenizers, streams, id_size)
    return ExampleSource(records, fields, seed=seed, size=size, **options)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_same(a, b):
    """Whether examples or batches have the same arrays, bit for bit."""
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def target_of(example, records, size=SIZE):
    """The record whose image the example's pixels were cropped from."""
    top, left = (int(v) for v in example["time_ids"][2:4])
    for record in records:
        image = load_image(record.image)
        if image.shape[:2] != tuple(example["time_ids"][:2]):
            continue
        height, width = image.shape[:2]
        scaled = [round(size * side / min(height, width)) for side in (width, height)]
        resized = PillowImage.fromarray(image).resize(scaled, PillowImage.Resampling.BICUBIC)
        crop = np.asarray(resized)[top : top + size, left : left + size]
        if np.array_equal(crop.astype(np.float32) / 127.5 - 1, example["pixel_values"]):
            return record
    raise AssertionError("the target is none of the records")


def references_of(example, records, size=ID_SIZE):
    """The records whose images the example's references were cropped from."""
    found = []
    for pixels in example["id_pixel_values"][example["id_mask"]]:
        for record in records:
            image = load_image(record.image)
            if record.face_box:
                image = square_face_crop(image, record.face_box)
            if np.array_equal(clip_preprocess(image, size), pixels):
                found.append(record)
    assert len(found) == example["id_mask"].sum()
    return found


def rewrite_manifest(folder, **changes):
    """Change lines of the folder's manifest: ``key``=list of values, None for no change."""
    path = folder / "manifest.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for key, values in changes.items():
        for entry, value in zip(entries, values, strict=False):
            if value is not None:
                entry[key] = value
    path.write_text("\n".join(map(json.dumps, entries)))
