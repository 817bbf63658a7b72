"""A tiny SDXL pair of tokenizers and a tiny folder of images, on disk."""

import numpy as np
import pytest
from PIL import Image

from data_pipeline.drawing import people as api
from data_pipeline.prompts import Tokenizers
from data_pipeline.records.manifest import read_manifest, write_manifest
from data_pipeline.records.schema import Record
from persongen_jax.weights.tiny_tokenizer import SDXL_PAD_TOKENS, write_tiny_tokenizer
from tests.data_pipeline.crowd import N


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    for name, pad_token in zip(("tokenizer", "tokenizer_2"), SDXL_PAD_TOKENS, strict=True):
        write_tiny_tokenizer(folder / name, pad_token)
    return Tokenizers.from_pretrained(folder)


@pytest.fixture
def folder(tmp_path):
    """Three identities with 2, 4 and 6 images of different shapes, with pixel values distinct
    enough to tell the images apart; half of them have a face box."""
    rng = np.random.default_rng(7)
    records = []
    for identity, count in (("anna", 2), ("bert", 4), ("carl", 6)):
        for i in range(count):
            path = tmp_path / f"{identity}_{i}.png"
            height, width = 40 + 3 * i, 40 + 5 * (i % 3)
            Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
            records.append(
                Record(
                    image=str(path),
                    identity=identity,
                    caption=f"a photo of a man img, {identity}, view {i}",
                    background="a beach" if i % 2 else "",
                    face_box=(10, 12, 26, 31) if i % 2 else None,
                )
            )
    write_manifest(tmp_path, records)
    return tmp_path


@pytest.fixture
def records(folder):
    return read_manifest(folder)


@pytest.fixture(scope="module")
def crowd():
    """(people, variations, images) of N different people in all framings."""
    who = api.make_identities("in_train", N)
    pictures = api.draw_pictures(seed=1, count=N)
    return who, pictures, api.render(who, pictures)
