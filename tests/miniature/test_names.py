"""Names in place of the class word."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.drawing.people import vocabulary
from data_pipeline.prompts import Tokenizers
from persongen_jax.miniature.pool import open_pool, prompt_ids
from persongen_jax.miniature.systems.names import make_names, replace_class_words
from persongen_jax.miniature.systems.unet import class_word_places
from persongen_jax.miniature.unit_scale import measure_scale
from persongen_jax.weights.tiny_tokenizer import SDXL_PAD_TOKENS, write_tiny_tokenizer

WIDTHS = 64, 128


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, pad_token in zip(("tokenizer", "tokenizer_2"), SDXL_PAD_TOKENS, strict=True):
        write_tiny_tokenizer(folder / name, pad_token, vocabulary())
    return Tokenizers.from_pretrained(folder)


def test_a_name_takes_its_place_and_no_other():
    embeds = jnp.zeros((3, 5, 2))
    names = jnp.array([[1.0, 2], [3, 4], [5, 6]])
    expected = np.zeros((3, 5, 2))
    expected[0, 4], expected[2, 0] = [1, 2], [5, 6]
    np.testing.assert_array_equal(
        replace_class_words(embeds, names, jnp.array([4, -1, 0])), expected
    )


def test_the_place_is_the_class_words(tokenizers):
    captions = ["a photo of an angry girl img looking to the left", "photo of a businessman img"]
    places = class_word_places(SimpleNamespace(captions=captions), tokenizers)
    for caption, place, word in zip(captions, places, ("girl", "businessman"), strict=True):
        token = int(tokenizers.encode(caption.replace(" img", ""))[0, place])
        assert tokenizers.tokenizer.convert_ids_to_tokens(token) == f"{word}</w>"


def test_prompts_are_tokenised_once(tokenizers, tmp_path):
    pool = open_pool(tmp_path, people=1)
    ids = prompt_ids(pool, tokenizers)
    assert ids.shape == (len(pool), 4, 2, 77)
    for row, part in ((0, 0), (0, 3), (len(pool) - 1, 1)):
        expected = tokenizers.encode(pool.prompts[row][part])
        np.testing.assert_array_equal(ids[row, part], expected)
    other = Tokenizers(tokenizers.tokenizer_2, tokenizers.tokenizer)  # which is not asked
    np.testing.assert_array_equal(prompt_ids(pool, other), ids)


class Words:
    """A text tower reduced to the size of its words."""

    def __init__(self, width, size):
        self.config = {"hidden_size": width}
        self.table = np.random.default_rng(width).normal(0, size, (20, width))

    def __call__(self, ids):
        return SimpleNamespace(hidden_states=(None, self.table[ids], None))


def test_names_are_as_large_as_words_and_as_unlike_as_faces(tmp_path):
    """``face_features.npy`` exists, so the image tower is not used."""
    features = np.random.default_rng(0).normal(3, 2, (50, 16)).astype(np.float32)
    np.save(tmp_path / "face_features.npy", features)
    ids = np.random.default_rng(1).integers(0, 20, (4, 2, 7))
    towers, remaining = (Words(WIDTHS[0], 5.0), Words(WIDTHS[1], 3.0)), iter(ids)
    tokenizers = SimpleNamespace(encode=lambda _: next(remaining))
    names = make_names(None, towers, None, tokenizers, ["", "", "", ""], tmp_path)
    assert names.shape == (50, sum(WIDTHS)) and names.dtype == np.float32
    # One factor per tower: in units of the tower's words, distances are the features' own.
    scales = [measure_scale(tower, ids[:, i]) for i, tower in enumerate(towers)]
    unscaled = names / np.repeat(scales, WIDTHS)
    assert unscaled.std() == pytest.approx(1, rel=0.01)
    standard = (features - features.mean(0)) / features.std(0)
    ratio = np.linalg.norm(unscaled[0] - unscaled[1:], axis=1) / np.linalg.norm(
        standard[0] - standard[1:], axis=1
    )
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
