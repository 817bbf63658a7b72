"""Values become means with their people, joined over runs, with and without a description."""

import json

import numpy as np
import pytest

from persongen_jax.metrics.base import Generated, Metric, NoFigure, Values
from persongen_jax.metrics.face_similarity import mean_embedding
from persongen_jax.metrics.measures import (
    join_measures,
    join_runs,
    measure,
    measure_all,
    with_descriptions,
)
from tests.metrics.known import generated, known_set


def test_a_measure_counts_and_bounds():
    found = measure([1, 2, 3, 6], ["a", "a", "b", "b"])
    assert found["mean"] == 3 and found["n"] == 4
    assert found["people"] == {"a": [1.5, 2], "b": [4.5, 2]}
    # Two people with means 1.5 and 4.5: Student's t with one degree of freedom is 12.706.
    assert found["low"] == pytest.approx(3 - 12.706 * 1.5, abs=1e-3)
    assert found["high"] == pytest.approx(3 + 12.706 * 1.5, abs=1e-3)
    assert "reason" not in found
    alone = measure([1, 2], ["a", "a"])
    assert alone["mean"] == 1.5 and alone["low"] is None and "one person" in alone["reason"]
    assert measure([], [])["mean"] is None and measure([], [])["reason"]
    json.dumps([found, alone, measure([], [])], allow_nan=False)


def test_what_gives_no_figure_is_said_once(capsys):
    class Never(Given):
        def __call__(self, generated, known):
            raise NoFigure(self.values)

    said, images, known = set(), generated([0], "a"), known_set({})
    for reason in ("too few", "too few", "another"):
        assert measure_all([Never(reason)], images, known, said) == {}
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("given gives no figure: ")[2] for line in lines] == [
        "too few",
        "another",
    ]


def test_mean_embedding_is_a_direction():
    found = mean_embedding(np.eye(4)[:2])
    assert np.allclose(found, [np.sqrt(0.5), np.sqrt(0.5), 0, 0])
    assert mean_embedding([]) is None


# ---- metrics to measures -----------------------------------------------------------------------


class Given(Metric):
    """Returns what it was created with."""

    name, title, form, chance = "given", "given", "{:.0f}", 0.25

    def __init__(self, values):
        self.values, self.judge = values, "judge.onnx"

    def __call__(self, generated, known):
        return self.values


class OfSet(Given):
    name, title, over, chance, plotted = "of_set", "of a set", "set", None, False


def measured(metric):
    return measure_all([metric], generated([0, 0, 0], "aab"), known_set({})).get(metric.name)


def test_what_cannot_be_measured_is_left_out():
    found = measured(Given(Values(np.array([1, np.nan, 4]), facts={"among": 7})))
    assert found["people"] == {"a": [1.0, 1], "b": [4.0, 1]} and found["n"] == 2
    assert found["missing"] == 1 and found["missing_people"] == {"a": 1}
    assert not {"missing", "missing_people"} & measured(Given(Values(np.ones(3)))).keys()
    description = {key: found[key] for key in ("title", "form", "over", "plotted", "judge")}
    assert description == {
        **{"title": "given", "form": "{:.0f}", "over": "images"},
        **{"plotted": True, "judge": "judge.onnx"},
    }
    assert found["among"] == 7 and found["chance"] == 0.25
    assert measured(Given(None)) is None
    nothing = measured(Given(Values(np.full(3, np.nan))))
    assert nothing["n"] == 0 and nothing["mean"] is None
    json.dumps([found, nothing], allow_nan=False)


def test_a_set_has_one_number():
    found = measured(OfSet(Values(2.5, n=2, interval=(2.0, 3.0), facts={"n_real": 9})))
    assert (found["mean"], found["low"], found["high"], found["n"]) == (2.5, 2.0, 3.0, 2)
    assert found["n_real"] == 9 and "people" not in found and "chance" not in found
    assert measured(OfSet(Values(2.5)))["n"] == 3
    nothing = measured(OfSet(Values(float("nan"))))
    assert nothing["mean"] is None and nothing["n"] == 0
    json.dumps([found, nothing], allow_nan=False)


@pytest.mark.parametrize("metric", [Given(Values(1.0)), OfSet(Values(np.ones(3)))])
def test_values_of_another_kind_are_refused(metric):
    with pytest.raises(ValueError, match=metric.name):
        measured(metric)


def test_inputs_are_one_each():
    with pytest.raises(ValueError, match="2 images and 1 texts"):
        Generated(np.zeros((2, 1, 1, 3), np.uint8), ["a", "b"], ["a"])
    with pytest.raises(ValueError, match="attributes"):
        generated([0], "a", inputs={"attributes": np.zeros((2, 5))})


# ---- rows --------------------------------------------------------------------------------------


def test_rows_of_earlier_versions_are_described_by_the_registry():
    metrics = {
        "clip_t": measure([1, 2], ["a", "b"]),
        "rank1_10": {**measure([1], ["a"]), "among": 4},
    }
    row = {"metrics": {**metrics, "gone": measure([1], ["a"])}, "clip": "c", "face_net": "f"}
    found = with_descriptions(row)
    assert found["clip_t"]["title"] == "CLIP-T" and found["clip_t"]["judge"] == "c"
    assert found["rank1_10"]["judge"] == "f" and found["rank1_10"]["chance"] == 0.25
    assert found["gone"]["title"] == "gone" and found["gone"]["judge"] is None
    assert found["clip_t"]["people"] == metrics["clip_t"]["people"]
    shuffled = {"metrics": dict(sorted(row["metrics"].items(), reverse=True))}
    assert list(with_descriptions(shuffled)) == ["clip_t", "rank1_10", "gone"]
    # A measure with a description needs no metric and is trusted.
    own = measured(OfSet(Values(1.0)))
    assert with_descriptions({"metrics": {"clip_t": own}})["clip_t"] is own


# ---- several runs ------------------------------------------------------------------------------


def test_runs_are_joined_over_seeds_and_people():
    low = measure([0, 0, 2], ["a", "a", "b"])
    high = measure([6, 6, 8, 8], ["a", "a", "b", "b"])
    joint = join_runs([low, high, measure([], [])])
    assert joint["runs"] == 2 and joint["n"] == 7
    assert joint["mean"] == pytest.approx(30 / 7)
    # Two people and two runs that differ much: as good as nothing is known.
    assert joint["low"] < 0 and joint["high"] > 8
    assert join_runs([])["mean"] is None
    # One run: its own interval over people.
    rng = np.random.default_rng(0)
    single = measure(rng.random(60), np.arange(60) // 3)
    again = join_runs([single])
    assert again["low"] == pytest.approx(single["low"])
    assert again["high"] == pytest.approx(single["high"])
    # Runs that agree narrow nothing; runs that differ widen it.
    shifted = measure(rng.random(60) + 0.5, np.arange(60) // 3)
    wide = join_runs([single, shifted])
    assert wide["high"] - wide["low"] > single["high"] - single["low"]
    one = join_runs([measure([1, 2], ["a"] * 2), measure([3, 4], ["a"] * 2)])
    assert one["low"] is None and "one person" in one["reason"]
    assert join_runs([{**single, "missing": 2}, shifted])["missing"] == 2


def of_set(mean, n=10, low=None, high=None):
    return {"mean": mean, "low": low, "high": high, "n": n}


def test_measures_without_people_are_joined_over_runs():
    joint = join_runs([of_set(1.0), of_set(2.0), of_set(6.0), of_set(None, n=0)])
    assert joint["mean"] == 3 and joint["runs"] == 3
    assert joint["n"] == 30 and joint["n_each"] == 10
    assert joint["low"] < 1 and joint["high"] > 6  # three runs, Student's t of 4.3 and a skewness
    assert join_runs([of_set(1.0), of_set(1.0)])["low"] is None
    assert join_runs([of_set(1.0), of_set(2.0, n=20)])["n"] == 30
    # One run says nothing about others, but may know its own interval.
    assert join_runs([of_set(2.0)])["low"] is None
    assert join_runs([of_set(2.0, low=1.5, high=2.5)])["high"] == 2.5


def test_a_mixture_is_joined_as_numbers():
    joint = join_runs([measure([1, 3], ["a", "b"]), of_set(4.0, n=2), measure([], [])])
    assert joint["mean"] == 3 and joint["runs"] == 2 and joint["n"] == 4
    assert join_runs([of_set(None, n=0), measure([], [])])["mean"] is None


def test_joint_measures_keep_what_their_descriptions_share():
    metric = OfSet(Values(1.0, facts={"n_real": 9, "version": 1}))
    first = measured(metric)
    second = {**first, "version": 2, "mean": 3.0}
    joint = join_measures([first, second])
    assert joint["mean"] == 2 and joint["n_real"] == 9 and "version" not in joint
    assert joint["title"] == "of a set" and joint["judge"] == "judge.onnx"
    # A row that does not name its judge is assumed to have the same one.
    assert join_measures([first, {**first, "judge": None}])["judge"] == "judge.onnx"
    assert join_measures([{**first, "judge": None}])["judge"] is None
