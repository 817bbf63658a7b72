"""Face-Sim, rank-1 and the interval, on examples small enough to work out by hand."""

import math

import numpy as np
import pytest

from persongen_jax.metrics.face_similarity import (
    bootstrap_interval,
    cosine,
    face_similarity,
    rank1,
)

# Against (1, 0): cosines 1, 0.6, 0 and -1, whatever the lengths.
EMBEDDINGS = np.array([[2, 0], [3, 4], [0, 0.1], [-5, 0]])
REFERENCE = np.array([7, 0])


def test_by_hand():
    got = face_similarity(EMBEDDINGS, REFERENCE, np.array([True, True, False, True]))
    assert got == {
        "face_sim": pytest.approx(0.6 / 3),
        "face_sim_misses_as_0": pytest.approx(0.6 / 4),
        "detection_rate": 0.75,
        "images": 4,
        "faces": 3,
    }


def test_one_reference_for_each_image():
    references = [[0, 1], [4, 3], [0, 1], [-1, 0]]
    np.testing.assert_allclose(cosine(EMBEDDINGS, np.array(references)), [0, 0.96, 1, 1])
    got = face_similarity(EMBEDDINGS, references)
    assert got["face_sim"] == got["face_sim_misses_as_0"] == pytest.approx(2.96 / 4)
    assert got["detection_rate"] == 1


def test_rows_without_a_face_may_hold_anything():
    embeddings = np.array([[1, 1], [np.nan, 0], [0, 0], [np.inf, 1]])
    got = face_similarity(embeddings, [1, 1], np.array([True, False, False, False]))
    assert got["face_sim"] == pytest.approx(1)
    assert got["face_sim_misses_as_0"] == pytest.approx(0.25)


def test_no_face_at_all_is_no_figure():
    got = face_similarity(EMBEDDINGS, REFERENCE, np.zeros(4, bool))
    assert math.isnan(got["face_sim"])
    assert got["face_sim_misses_as_0"] == got["detection_rate"] == got["faces"] == 0


@pytest.mark.parametrize(
    ("embeddings", "references", "detected", "named"),
    [
        (np.zeros((0, 2)), REFERENCE, None, "at least one row"),
        (EMBEDDINGS, [1, 0, 0], None, "reference"),
        (EMBEDDINGS, EMBEDDINGS[:3], None, "reference"),
        (EMBEDDINGS, REFERENCE, np.array([0, 1, 2, 3]), "bool"),
        (EMBEDDINGS, REFERENCE, np.array([True]), "bool"),
        (EMBEDDINGS, [0, 0], None, "zero or not finite"),
        (EMBEDDINGS * [[1], [1], [1], [np.nan]], REFERENCE, None, "embedding 3"),
    ],
)
def test_what_makes_no_figure_is_refused(embeddings, references, detected, named):
    with pytest.raises(ValueError, match=named):
        face_similarity(embeddings, references, detected)


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


def test_interval_of_two_identities_by_hand():
    """Resampled: a a (mean 0), a b or b a (mean 0.25, since a has 3 images), b b (mean 1)."""
    values, identities = [0, 0, 0, 1], ["a", "a", "a", "b"]
    assert bootstrap_interval(values, identities) == (0, 1)
    assert bootstrap_interval(values, identities, confidence=0.4) == (0.25, 0.25)


def test_interval_covers_the_truth_as_often_as_it_says():
    """Persons differ, their images hardly do: an interval over images would cover far less."""
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
def test_what_makes_no_interval_is_refused(values, identities, named):
    with pytest.raises(ValueError, match=named):
        bootstrap_interval(values, identities)
