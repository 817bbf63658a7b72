"""Cosines and rank-1, on examples small enough to work out by hand."""

import numpy as np
import pytest

from persongen_jax.metrics.face_similarity import cosine, rank1

# Against (1, 0): cosines 1, 0.6, 0 and -1, whatever the lengths.
EMBEDDINGS = np.array([[2, 0], [3, 4], [0, 0.1], [-5, 0]])
REFERENCE = np.array([7, 0])


def test_cosines_by_hand():
    reference = np.broadcast_to(REFERENCE, EMBEDDINGS.shape)
    np.testing.assert_allclose(cosine(EMBEDDINGS, reference), [1, 0.6, 0, -1])
    references = np.array([[0, 1], [4, 3], [0, 1], [-1, 0]])
    np.testing.assert_allclose(cosine(EMBEDDINGS, references), [0, 0.96, 1, 1])


@pytest.mark.parametrize(
    ("references", "named"),
    [
        (np.zeros((4, 2)), "embedding 0 .*zero or not finite"),
        (EMBEDDINGS * [[1], [1], [1], [np.nan]], "embedding 3"),
    ],
)
def test_rows_without_a_direction_have_no_cosine(references, named):
    with pytest.raises(ValueError, match=named):
        cosine(EMBEDDINGS, references)


GALLERY = np.array([[1, 0], [0, 10], [-1, 0], [-1, 0.1]])
GALLERY_LABELS = ["ann", "bob", "cy", "cy"]


def test_rank1_by_hand():
    # Nearest by direction, not by distance: (0.2, 0.3) is nearer to ann's point, and is bob.
    embeddings = np.array([[5, 1], [0.2, 0.3], [-9, 2], [1, 0], [np.nan, 0]])
    labels = ["ann", "bob", "cy", "bob", "ann"]
    detected = np.array([True, True, True, True, False])
    got = rank1(embeddings, labels, GALLERY, GALLERY_LABELS, detected)
    assert got == {"rank1": 3 / 5, "images": 5, "identities": 3}


def test_rank1_of_noise_is_chance():
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=4000)
    got = rank1(rng.normal(size=(4000, 16)), labels, rng.normal(size=(10, 16)), np.arange(10))
    assert got["rank1"] == pytest.approx(0.1, abs=0.02) and got["identities"] == 10


def test_rank1_refuses_strangers():
    with pytest.raises(ValueError, match="dora"):
        rank1(EMBEDDINGS[:1], ["dora"], GALLERY, GALLERY_LABELS)
    with pytest.raises(ValueError, match="one label each"):
        rank1(EMBEDDINGS, ["ann"], GALLERY, GALLERY_LABELS)


@pytest.mark.parametrize(
    ("embeddings", "detected", "named"),
    [
        (np.zeros((0, 2)), None, "at least one row"),
        (EMBEDDINGS, np.array([0, 1, 2, 3]), "bool"),
        (EMBEDDINGS, np.array([True]), "bool"),
        (EMBEDDINGS * [[1], [1], [1], [np.nan]], None, "embedding 3"),
    ],
)
def test_rank1_of_what_makes_no_figure_is_refused(embeddings, detected, named):
    with pytest.raises(ValueError, match=named):
        rank1(embeddings, ["ann"] * len(embeddings), GALLERY, GALLERY_LABELS, detected)
