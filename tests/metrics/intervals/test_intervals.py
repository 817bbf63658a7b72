"""Intervals hold the truth as often as they say; pairs, and what would settle their sign."""

import json

import numpy as np
import pytest
from scipy import stats

from benchmarks.evaluation import coverage, set_coverage
from persongen_jax.metrics.intervals.jackknife import group_people, jackknife_interval
from persongen_jax.metrics.intervals.limits import SHARE, freedom_of, spread_over
from persongen_jax.metrics.intervals.pairs import difference, pair
from persongen_jax.metrics.intervals.people import over_answers, over_people
from persongen_jax.metrics.intervals.runs import over_people_and_runs, over_runs
from persongen_jax.metrics.intervals.settle import people_to_settle, seeds_to_settle

# ---- Coverage ----------------------------------------------------------------------------------

TRIALS = 2000  # a coverage of 95 % is then known to 1.5 points, three standard errors


def covered(name, people, design="20 images each", method=coverage.ours):
    draw, truth = (coverage.DISTRIBUTIONS | coverage.HARD)[name]
    rng = np.random.default_rng(7)
    data = coverage.draw_people(draw, coverage.DESIGNS[design], people, TRIALS, rng)
    limits = method(*data, coverage.is_share(name), rng)
    return coverage.measured(limits, truth)[0]


@pytest.mark.parametrize("people", [10, 25])
@pytest.mark.parametrize("name", ["normal", "lognormal", "Bernoulli, 70 %", "Bernoulli, 90 %"])
def test_the_truth_is_held_as_often_as_said(name, people):
    assert 0.92 <= covered(name, people) <= 0.975


@pytest.mark.parametrize("name", ["normal", "lognormal", "Bernoulli, 70 %"])
def test_people_with_one_image_and_with_twenty(name):
    assert 0.92 <= covered(name, 10, "1 to 20 images") <= 0.98


def test_the_percentile_bootstrap_fails_at_ten_people():
    for name in ("normal", "lognormal", "Bernoulli, 90 %"):
        assert covered(name, 10, method=coverage.percentile) < 0.92


@pytest.mark.parametrize(("kind", "effect"), [("normal", "a third"), ("Bernoulli", "small")])
def test_people_and_seeds(kind, effect):
    rng = np.random.default_rng(3)
    effects = coverage.SEED_EFFECTS[effect]
    sums, counts, truth = coverage.draw_seeds(kind, effects, 3, 10, TRIALS, rng)
    share = kind == "Bernoulli"
    found, _ = coverage.measured(coverage.seeds_ours(sums, counts, share, rng), truth)
    assert 0.935 <= found <= 0.98
    if not share:
        # Seeds all count: an interval over people alone holds the truth less often.
        alone, _ = coverage.measured(coverage.ours(sums.sum(1), counts.sum(1), False, rng), truth)
        assert alone < found


def test_a_benchmark_of_few_trials_has_all_tables():
    text = coverage.page(20)
    assert text.count("\n## ") == 6 and "| normal | **ours** |" in text and "nan" not in text


# ---- The formulas --------------------------------------------------------------------------------


def test_equal_numbers_of_images_are_student_s_t():
    """Symmetric data, so that there is no skewness: mean ± 2.7764 deviations / √5."""
    own = np.array([1.0, 2, 3, 4, 5])
    values, people = np.repeat(own, 4), np.repeat(list("abcde"), 4)
    found = over_people(values, people)
    room = 2.776445 * own.std(ddof=1) / np.sqrt(5)
    assert (found.low, found.high) == pytest.approx((3 - room, 3 + room))
    assert (found.mean, found.n, found.units, found.reason) == (3, 20, 5, "")


def test_freedom_is_that_of_the_whole_matrix():
    counts = np.random.default_rng(0).integers(1, 40, 7).astype(float)
    weights = counts / counts.sum()
    project = np.eye(7) - np.outer(weights, np.ones(7))
    varied = project @ np.diag(weights**2) @ project.T
    varied = np.diag(1 / (1 - weights)) @ varied
    assert freedom_of(counts) == pytest.approx(np.trace(varied) ** 2 / np.trace(varied @ varied))
    assert freedom_of(np.full(9, 3.0)) == pytest.approx(8)
    assert freedom_of(np.array([1.0, 1, 1, 1, 40])) < 2  # one person counts for nearly all


def test_skewed_values_reach_further_to_their_long_side():
    found = over_people([1, 1.1, 1.2, 1.3, 5], list("abcde"))
    assert found.high - found.mean > found.mean - found.low
    mirrored = over_people([-1, -1.1, -1.2, -1.3, -5], list("abcde"))
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_the_spread_over_people_is_not_that_over_images():
    values = np.repeat([0.0, 1.0] * 5, 100)
    few = spread_over(np.array([0.0, 100] * 5), np.full(10, 100.0))
    assert few.error == pytest.approx(np.std([0, 1] * 5, ddof=1) / np.sqrt(10))
    assert few.error > 9 * values.std() / np.sqrt(1000)


# ---- All equal, one person, faults -------------------------------------------------------------


def test_all_right_is_as_clopper_and_pearson_say_of_people():
    """Ten of ten: 0.6915 to 1, however many images each has."""
    for each in (1, 40):
        people = np.repeat(np.arange(10), each)
        right = over_people(np.ones(10 * each), people, SHARE)
        wrong = over_people(np.zeros(10 * each), people, SHARE)
        assert (round(right.low, 4), right.high) == (0.6915, 1)
        assert (wrong.low, round(wrong.high, 4)) == (0, 0.3085)


def test_all_equal_values_have_an_interval_if_they_have_bounds():
    people = list("aabbcc")
    found = over_people([0.6] * 6, people, (-1.0, 1.0))
    assert -1 < found.low < 0.6 < found.high < 1
    half = over_people([0, 1] * 3, people, SHARE)
    assert 0 < half.low < 0.5 < half.high < 1
    unbounded = over_people([0.1 + 0.2, 0.3] * 3, people)
    assert (unbounded.low, unbounded.high) == (None, None) and "same mean" in unbounded.reason
    runs = over_people_and_runs(np.full((3, 10), 4.0), np.full((3, 10), 4.0), SHARE)
    assert round(runs.low, 4) == 0.6915 and runs.high == 1


def test_shares_stay_within_0_and_1():
    found = over_people([1] * 99 + [0], np.arange(100) // 10, SHARE)
    assert 0.8 < found.low < 0.99 < found.high < 1
    two = over_people([1, 1, 1, 0], list("aabb"), SHARE)
    assert 0 <= two.low < 0.75 < two.high <= 1


def test_one_person_and_nothing_have_a_reason():
    alone = over_people([1, 0, 1], list("aaa"), SHARE)
    assert (alone.low, alone.units) == (None, 1) and "one person" in alone.reason
    nothing = over_people([], [])
    assert nothing.mean is None and nothing.n == 0 and nothing.reason
    assert "one run" in over_runs(np.array([3.0])).reason
    json.dumps([alone.as_measure(), nothing.as_measure()], allow_nan=False)
    # Two people, one with a single image.
    assert over_people([1, 2, 3], list("aab")).low is not None


@pytest.mark.parametrize(
    ("values", "people", "bounds", "named"),
    [
        ([1, np.nan], ["a", "b"], None, "1 of 2 values are not finite"),
        ([1, np.inf], ["a", "b"], None, "not finite"),
        ([1, 2], ["a"], None, "both are"),
        ([0.5, 1.5], ["a", "b"], SHARE, "1.5 lies outside"),
    ],
)
def test_values_without_an_interval_are_refused(values, people, bounds, named):
    with pytest.raises(ValueError, match=named):
        over_people(values, people, bounds)


def test_wilson_of_independent_answers():
    """The closed form's known value for 8 of 10: 0.4902 to 0.9433."""
    found = over_answers([1] * 8 + [0] * 2)
    assert (found.mean, round(found.low, 4), round(found.high, 4)) == (0.8, 0.4902, 0.9433)
    assert over_answers([1] * 5).high == 1 and over_answers([1] * 5).low < 0.6
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        over_answers([0.5])
    with pytest.raises(ValueError, match="not finite"):
        over_answers([np.nan])


# ---- Runs ----------------------------------------------------------------------------------------


def test_runs_without_a_person_and_empty_runs():
    sums = np.array([[1.0, 2, 3], [1.5, 2.5, 0], [0, 0, 0]])
    counts = np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    found = over_people_and_runs(sums, counts)
    assert found.mean == 2 and found.n == 5 and found.units == 3
    assert found.low < 2 < found.high
    with pytest.raises(ValueError, match=r"both are \[runs, people\]"):
        over_people_and_runs(sums, counts[:2])
    with pytest.raises(ValueError, match="not finite"):
        over_people_and_runs(sums * np.nan, counts)


# ---- Pairs ---------------------------------------------------------------------------------------


def two_methods(people=10, seeds=3, gain=0.3, spread=0.2):
    """The second method is worse by ``gain``; people differ far more than the methods do."""
    rng = np.random.default_rng(5)
    keys = [(f"p{p}", prompt, s) for p in range(people) for prompt in "xy" for s in range(seeds)]
    own = {f"p{p}": 5 * rng.normal() for p in range(people)}
    own_gain = {f"p{p}": gain + spread * rng.normal() for p in range(people)}
    second = np.array([own[key[0]] for key in keys])
    first = second + [own_gain[key[0]] + 0.05 * rng.normal() for key in keys]
    return keys, first, second


def test_pairs_see_what_two_intervals_do_not():
    keys, first, second = two_methods()
    people = [key[0] for key in keys]
    one, two = over_people(first, people), over_people(second, people)
    assert one.low < two.high and two.low < one.high  # they overlap widely
    shuffled = np.random.default_rng(0).permutation(len(keys))
    pairs = pair(first, keys, second[shuffled], [keys[i] for i in shuffled])
    found = difference(pairs)
    assert 0 < found.low < found.mean < found.high and found.units == 10
    assert found.mean == pytest.approx(np.mean(first - second))
    both = difference(pairs, over_seeds=True)
    assert both.low <= found.low and both.high >= found.high - 1e-12
    turned = difference(pair(second, keys, first, keys))
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_what_is_not_paired_is_listed():
    keys, first, second = two_methods(people=3)
    first[0] = np.nan
    pairs = pair(first[:-1], keys[:-1], second[2:], keys[2:])
    assert pairs.only_first == tuple(keys[:2]) and pairs.only_second == (keys[-1],)
    assert pairs.missing == () and len(pairs.differences) == len(keys) - 3
    pairs = pair(first, keys, second, keys)
    assert pairs.missing == (keys[0],)
    assert pairs.left_out() == "1 of 18 not compared: 1 not measured"
    assert pair(second, keys, second, keys).left_out() == ""
    with pytest.raises(ValueError, match="first method has two images"):
        pair(first[:2], [keys[0]] * 2, second, keys)
    with pytest.raises(ValueError, match="2 values and 18 keys of the first"):
        pair(first[:2], keys, second, keys)


def test_a_method_against_itself():
    keys, first, _ = two_methods()
    pairs = pair(first, keys, first, keys)
    assert difference(pairs).reason and people_to_settle(pairs) is None
    shares = difference(pairs, bounds=SHARE)
    assert shares.low == pytest.approx(-shares.high) and 0.2 < shares.high < 0.4
    assert seeds_to_settle(pairs) is None


def test_the_people_that_settle_a_difference_do():
    """As many people as asked for: the interval leaves out 0 in about 80 % of new samples."""
    keys, first, second = two_methods(people=200, gain=0.1, spread=0.25)
    needed = people_to_settle(pair(first, keys, second, keys))
    assert 30 < needed < 90
    gain = np.mean(first - second)
    own = np.array([np.mean((first - second)[i * 6 : i * 6 + 6]) for i in range(200)])
    rng = np.random.default_rng(1)
    drawn = gain + own.std(ddof=1) * rng.normal(size=(2000, needed))
    low, _ = coverage.t_interval(drawn, np.ones(drawn.shape), False, rng)
    assert 0.76 < (low > 0).mean() < 0.84


def test_seeds_settle_what_differs_between_seeds_only():
    rng = np.random.default_rng(2)
    keys = [(p, "x", s) for p in range(10) for s in range(4)]
    noise = rng.normal(size=len(keys))
    noisy = pair(0.5 + 2 * noise, keys, np.zeros(len(keys)), keys)
    assert 4 < seeds_to_settle(noisy) < 100
    people = 0.1 + np.repeat(rng.normal(size=10), 4) + 0.01 * noise
    assert seeds_to_settle(pair(people, keys, np.zeros(len(keys)), keys)) is None
    assert people_to_settle(pair(people, keys, np.zeros(len(keys)), keys)) > 10


# ---- Numbers of whole sets -----------------------------------------------------------------------


def test_leaving_people_out_of_a_mean_is_students_t():
    values = np.random.default_rng(0).standard_normal(12)
    found = jackknife_interval(values.mean(), lambda i: np.delete(values, i).mean(), np.ones(12))
    assert found == pytest.approx(stats.t.interval(0.95, 11, values.mean(), stats.sem(values)))


def test_people_are_grouped_alike_in_both_kinds_of_images():
    (made, real), sizes = group_people(["b", "a", "b"], ["a", "c", "b"])
    assert made.tolist() == [0, 1, 0] and real.tolist() == [1, 2, 0]
    names = [f"p{i}" for i in range(50)]
    assert sizes.tolist() == [1, 1, 1]
    (many,), sizes = group_people(names)
    assert many.max() == 19 and np.bincount(many).tolist() == sizes.tolist() == [3] * 10 + [2] * 10


def test_groups_of_two_sizes_keep_a_figures_bias_out_of_its_interval():
    """25 people in 20 groups: of a mean plus 50 / people the interval is that of the mean."""
    people = np.random.default_rng(3).standard_normal(25)
    (groups,), sizes = group_people([f"p{i}" for i in range(25)])

    def interval(bias):
        def figure(values):
            return values.mean() + bias / len(values)

        low, high = jackknife_interval(figure(people), lambda g: figure(people[groups != g]), sizes)
        return high - low

    assert interval(50.0) == pytest.approx(interval(0.0), rel=1e-9)
    usual = 2 * stats.t.ppf(0.975, 24) * stats.sem(people)
    assert 0.6 * usual < interval(0.0) < 1.6 * usual


def test_what_cannot_be_left_out_has_no_interval():
    assert jackknife_interval(1.0, lambda _: 1.0, np.ones(1)) is None
    assert jackknife_interval(1.0, lambda i: None if i else 1.0, np.ones(3)) is None
    assert jackknife_interval(1.0, lambda i: 1.0, np.ones(3)) is None  # not [1, 1]


def test_a_benchmark_of_sets_has_a_row_of_each():
    rows = set_coverage.measure(1, draws=2)
    assert [row[:2] for row in rows] == [[n, p] for n in ("FID", "KID", "CMMD") for p in (10, 25)]
