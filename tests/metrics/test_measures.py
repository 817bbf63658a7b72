"""Means, ranks and their people, on embeddings whose answers can be read off."""

import json

import numpy as np
import pytest

from persongen_jax.metrics.face_similarity import rank1
from persongen_jax.metrics.measures import face_measures, join_runs, mean_embedding, measure

AXES = dict(zip("abc", np.eye(4)[:3], strict=True))


def towards(first, second, cosine):
    """A unit vector with this cosine to axis ``first``, the rest along ``second``."""
    vector = np.zeros(4)
    vector[first], vector[second] = cosine, np.sqrt(1 - cosine**2)
    return vector


def test_a_measure_counts_and_bounds():
    found = measure([1, 2, 3, 6], ["a", "a", "b", "b"])
    assert found["mean"] == 3 and found["n"] == 4
    assert found["people"] == {"a": [1.5, 2], "b": [4.5, 2]}
    # Whole people are drawn, so the mean moves between those of a alone and b alone.
    assert found["low"] == 1.5 and found["high"] == 4.5
    alone = measure([1, 2], ["a", "a"])
    assert alone["mean"] == 1.5 and alone["low"] is None
    assert measure([], [])["mean"] is None
    json.dumps([found, alone, measure([], [])], allow_nan=False)


def test_faces_by_hand():
    embeddings = np.stack(
        [
            towards(0, 1, 0.8),  # a: right, 0.6 to b
            towards(0, 1, 0.6),  # a: nearer to b
            np.full(4, np.nan),  # b: no face, and so anything
            towards(1, 3, 0.5),  # b: right
        ]
    )
    found = np.array([True, True, False, True])
    measures = face_measures(embeddings, found, list("aabb"), AXES, AXES)
    assert measures["face_sim"]["mean"] == pytest.approx((0.8 + 0.6 + 0.5) / 3)
    assert measures["face_sim"]["n"] == 3
    assert measures["face_sim_misses_as_0"]["mean"] == pytest.approx((0.8 + 0.6 + 0.5) / 4)
    assert measures["detection_rate"]["mean"] == 0.75
    assert measures["cosine_true"]["mean"] == pytest.approx((0.8 + 0.6 + 0.5) / 3)
    # The two others of each: (0.6 + 0) / 2, (0.8 + 0) / 2, 0.
    assert measures["cosine_others"]["mean"] == pytest.approx((0.3 + 0.4 + 0) / 3)
    assert measures["rank1_10"]["mean"] == 0.5 and measures["rank1_10"]["among"] == 3
    assert measures["rank1_10"]["people"] == {"a": [0.5, 2], "b": [0.5, 2]}
    assert "rank1_100" not in measures


def test_ranks_agree_with_rank1_and_the_gallery_may_be_larger():
    rng = np.random.default_rng(0)
    names = [f"p{i:02d}" for i in range(30)]
    gallery = dict(zip(names, rng.standard_normal((30, 8)), strict=True))
    people = np.array(names[:12]).repeat(4)
    embeddings = np.stack([gallery[name] for name in people]) + 1.2 * rng.standard_normal((48, 8))
    found = rng.random(48) < 0.8
    own = {name: gallery[name] for name in names[:12]}
    measures = face_measures(embeddings, found, people, own, own, gallery)
    few = np.isin(people, names[:10])
    wanted = rank1(
        embeddings[few], people[few], list(gallery.values())[:10], names[:10], found[few]
    )
    assert 0.2 < wanted["rank1"] < 0.95
    assert measures["rank1_10"]["mean"] == pytest.approx(wanted["rank1"])
    assert measures["rank1_10"]["n"] == 40 and measures["rank1_10"]["among"] == 10
    wanted = rank1(embeddings, people, list(gallery.values()), names, found)
    assert measures["rank1_100"]["mean"] == pytest.approx(wanted["rank1"])
    assert measures["rank1_100"]["among"] == 30


def test_people_without_a_reference_are_left_out():
    embeddings = np.stack([AXES["a"], AXES["b"]])
    found = np.array([True, True])
    only_a = {"a": AXES["a"]}
    measures = face_measures(embeddings, found, list("ab"), only_a, only_a)
    assert measures["face_sim"]["people"] == {"a": [1.0, 1]}
    assert measures["cosine_others"]["n"] == 0  # there is nobody else
    assert face_measures(embeddings[1:], found[1:], ["b"], only_a, only_a) == {}
    none = face_measures(embeddings, np.array([False, False]), list("ab"), AXES, AXES)
    assert none["face_sim"]["mean"] is None and none["rank1_10"]["mean"] == 0


def test_mean_embedding_is_a_direction():
    found = mean_embedding([AXES["a"], AXES["b"]])
    assert np.allclose(found, [np.sqrt(0.5), np.sqrt(0.5), 0, 0])
    assert mean_embedding([]) is None


def test_runs_are_joined_over_seeds_and_people():
    low = measure([0, 0, 2], ["a", "a", "b"])
    high = measure([6, 6, 8, 8], ["a", "a", "b", "b"])
    joint = join_runs([low, high, measure([], [])])
    assert joint["runs"] == 2 and joint["n"] == 7
    assert joint["mean"] == pytest.approx(30 / 7)
    # From the run of zeros and person a, to the other run and b.
    assert joint["low"] == pytest.approx(0) and joint["high"] == pytest.approx(8)
    assert join_runs([])["mean"] is None
    # One run: as wide as its own interval over people.
    rng = np.random.default_rng(0)
    single = measure(rng.random(60), np.arange(60) // 3)
    again = join_runs([single])
    assert again["low"] == pytest.approx(single["low"], abs=0.02)
    assert again["high"] == pytest.approx(single["high"], abs=0.02)
