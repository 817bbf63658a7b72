"""Cosines, rank-1 and the interval, on examples small enough to work out by hand."""

import numpy as np
import pytest

from persongen_jax.metrics.face_similarity import bootstrap_interval, cosine, rank1

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


def test_interval_of_two_identities_by_hand():
    """Resampled: a a (mean 0), a b or b a (mean 0.25, since a has 3 images), b b (mean 1)."""
    values, identities = [0, 0, 0, 1], ["a", "a", "a", "b"]
    assert bootstrap_interval(values, identities) == (0, 1)
    assert bootstrap_interval(values, identities, confidence=0.4) == (0.25, 0.25)


def test_interval_covers_the_truth_as_often_as_it_says():
    """People differ, their images hardly do: an interval over images would cover far less."""
    rng = np.random.default_rng(0)
    identities = np.repeat(np.arange(30), 8)
    covered = 0
    for trial in range(200):
        values = np.repeat(rng.normal(size=30), 8) + 0.1 * rng.normal(size=240)
        low, high = bootstrap_interval(values, identities, samples=400, seed=trial)
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_interval_is_seeded():
    rng = np.random.default_rng(0)
    values, identities = rng.normal(size=50), np.arange(50) % 7
    first = bootstrap_interval(values, identities, seed=3)
    assert first == bootstrap_interval(values, identities, seed=3)
    assert first != bootstrap_interval(values, identities, seed=4)
    assert first[0] < values.mean() < first[1]


@pytest.mark.parametrize(
    ("values", "identities", "named"),
    [
        ([1, 2], ["a", "a"], "two are needed"),
        ([1, np.nan], ["a", "b"], "not finite"),
        ([1, 2], ["a"], "both are"),
    ],
)
def test_values_without_an_interval_are_refused(values, identities, named):
    with pytest.raises(ValueError, match=named):
        bootstrap_interval(values, identities)
