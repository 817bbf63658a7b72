"""CLIP-T against transformers' CLIPModel with the same weights, and what cannot be opened."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from data_pipeline.pictures.transforms import clip_preprocess
from persongen_jax.metrics import clip_score
from persongen_jax.metrics.base import Generated
from persongen_jax.metrics.clip_score import BATCH, ClipScore
from persongen_jax.metrics.feature_judges import ClipJudge
from persongen_jax.metrics.images.clip_t import ClipT
from persongen_jax.weights.errors import KeyMismatch, MissingFile
from tests.helpers.encoders.tiny_clip import write_tiny_clip

TEXTS = ["a man", "a photo of a woman in a red hat", "", "castle " * 100]
TOLERANCE = 1e-4  # of the score, which is in -100..100


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def theirs(folder):
    return write_tiny_clip(folder)


@pytest.fixture(scope="module")
def ours(folder, theirs):
    return ClipScore(folder)


def pictures(count, size=(40, 52)):
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)


def their_score(model, folder, images, texts):
    """transformers' logits over its temperature: the diagonal of every image with every text."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    ids = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    pixels = np.stack([clip_preprocess(image, 32) for image in images]).transpose(0, 3, 1, 2)
    with torch.no_grad():
        out = model(**ids, pixel_values=torch.from_numpy(pixels))
        cosines = out.logits_per_image / model.logit_scale.exp()
    return 100 * cosines.diagonal().numpy()


def test_same_score_as_transformers(ours, theirs, folder):
    images = pictures(len(TEXTS))
    wanted = their_score(theirs, folder, images, TEXTS)
    found = ours.score(images, TEXTS)
    assert found.shape == (len(TEXTS),)
    assert np.ptp(wanted) > 1  # not one number for all
    assert np.abs(found - wanted).max() < TOLERANCE
    assert np.array_equal(ours.score_features(ours.image_features(images), TEXTS), found)


def test_preprocessing_is_transformers(theirs):
    """The input images are those of transformers' own processor."""
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    image = pictures(1)[0]
    wanted = np.asarray(processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0])
    found = clip_preprocess(image, 32).transpose(2, 0, 1)
    assert wanted.shape == found.shape
    assert np.abs(wanted - found).max() < 0.02  # 8-bit steps are 0.015 wide


def test_any_number_and_size_is_one_program(ours):
    functions = clip_score._embed_images, clip_score._embed_texts
    ours.score(pictures(2), TEXTS[:2])
    compiled = [function._cache_size() for function in functions]
    many = ours.image_features(pictures(BATCH + 3))
    mixed = ours.image_features([pictures(1, (33, 80))[0], pictures(1)[0]])
    ours.text_features([f"text {i}" for i in range(BATCH + 1)])
    assert [function._cache_size() for function in functions] == compiled
    assert many.shape == (BATCH + 3, 24) and np.allclose(np.linalg.norm(many, axis=1), 1)
    # An image's embedding does not depend on its batch.
    assert np.allclose(mixed[1], ours.image_features(pictures(1))[0], atol=1e-6)


def test_a_text_each(ours):
    with pytest.raises(ValueError, match="3 images and 1 texts"):
        ours.score(pictures(3), ["a man"])
    with pytest.raises(ValueError, match="nothing"):
        ours.image_features([])


def test_folders_without_a_clip_are_refused(folder, theirs, tiny_base, tmp_path):
    with pytest.raises(MissingFile, match="clip-vit-large-patch14-336"):
        ClipScore(tmp_path / "none")
    with pytest.raises(KeyMismatch):  # an image tower alone
        ClipScore(tiny_base / "image_encoder")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path / name)
    with pytest.raises(MissingFile, match="tokenizer"):
        ClipScore(tmp_path)


def test_the_metric_takes_images_of_any_sizes_and_leaves_out_unknown_texts(ours):
    images = [*pictures(2), *pictures(1, (33, 90))]
    metric = ClipT(SimpleNamespace(clip="tiny"), SimpleNamespace(clip=ClipJudge(ours)))
    found = metric(Generated(images, ["ann"] * 3, ["a man", "", "a castle"]), None).values
    wanted = ours.score([images[0], images[2]], ["a man", "a castle"])
    assert np.abs(found[[0, 2]] - wanted).max() < TOLERANCE and np.isnan(found[1])
