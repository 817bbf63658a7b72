"""Rules of verification on made-up embeddings, and each of them written plainly."""

import numpy as np
import pytest

from data_pipeline.collect import verify
from data_pipeline.collect.settings import Verify
from tests.data_pipeline.collect.made import choice, face, people


def dropped(rule, embeddings, value, own):
    kept = verify.RULES[rule](embeddings, value).kept
    return (~kept[own:]).mean(), (~kept[:own]).mean()


@pytest.mark.parametrize("n", [2, 3, 4, 7, 8])
def test_medians_of_the_others(n):
    rows = np.random.default_rng(n).standard_normal((n, 5)).round(1)  # with equal values, too
    plain = [np.median(np.delete(rows, i, axis=0), axis=0) for i in range(n)]
    np.testing.assert_allclose(verify.medians_of_others(rows), plain, atol=1e-12)


@pytest.mark.parametrize(("own", "strangers"), [(9, 1), (8, 2), (10, 5), (20, 9)])
@pytest.mark.parametrize("one_stranger", [False, True])
def test_the_median_finds_strangers_and_keeps_the_person(own, strangers, one_stranger):
    found = [
        people(seed, own=own, strangers=strangers, one_stranger=one_stranger) for seed in range(20)
    ]
    rates = np.mean([dropped("median", rows, 0.4, own) for rows in found], axis=0)
    assert rates[0] >= 0.95 and rates[1] <= 0.01


def test_of_two_pictures_that_differ_none_is_believed():
    assert not verify.median_rule(people(0, own=1, strangers=1), 0.4).kept.any()
    assert verify.median_rule(people(0, own=2, strangers=0), 0.4).kept.all()


@pytest.mark.parametrize("rule", ["median", "mean_cosine"])
def test_who_just_reaches_the_threshold_stays(rule):
    rows = people(4, own=5, strangers=0)
    least = float(verify.RULES[rule](rows, 0).scores.min())
    assert verify.RULES[rule](rows, least).kept.all()
    assert (~verify.RULES[rule](rows, np.nextafter(least, 1)).kept).sum() == 1


@pytest.mark.parametrize("n", [10, 65])
def test_the_papers_rule_drops_nothing_in_small_groups(n):
    rows = people(0, own=n - 1, strangers=1)
    assert verify.paper_rule(rows, 8).kept.all()


def test_the_papers_rule_drops_a_stranger_among_very_many():
    rows = people(0, own=200, strangers=1, noise=0.05)
    assert dropped("paper", rows, 8, 200) == (1, 0)


def test_sums_written_plainly():
    rows = people(1, own=4, strangers=2)
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    similar = 1 - distance / 2
    np.fill_diagonal(similar, 0)
    np.testing.assert_allclose(verify.summed_similarity(rows), similar.sum(1), atol=2e-3)
    cosine = rows @ rows.T
    means = [np.delete(cosine[i], i).mean() for i in range(6)]
    np.testing.assert_allclose(verify.mean_cosine_rule(rows, 0).scores, means, atol=1e-5)


def test_of_several_faces_the_one_that_the_others_show_is_taken():
    rows = people(2, own=5, strangers=1)
    pair = choice(0, faces=[face(), face()], embeddings=rows[[5, 0]])
    others = [choice(n, embeddings=rows[[n]]) for n in range(1, 5)]
    kept, gone, rules = verify.verify_person([pair, *others], Verify())
    assert [c.face for c in kept] == [1, 0, 0, 0, 0] and gone == []
    assert rules == {"median": 0, "mean_cosine": 0, "mad": 0, "paper": 0}


def test_two_faces_of_one_picture_do_not_speak_for_each_other():
    rows = people(5, own=2, strangers=1)
    group = choice(0, faces=[face()] * 3, embeddings=rows[[2, 2, 0]])  # twins beside the person
    kept, _, _ = verify.verify_person([group, choice(1, embeddings=rows[[1]])], Verify())
    assert [c.face for c in kept] == [2, 0]


def test_the_rule_that_is_chosen_decides():
    rows = people(3, own=6, strangers=1)
    choices = [choice(n, embeddings=rows[[n]]) for n in range(7)]
    _, gone, rules = verify.verify_person(choices, Verify(rule="paper"))
    assert gone == [] and (rules["median"], rules["paper"]) == (1, 0)


def test_thresholds_written_plainly():
    rows = people(6, own=7, strangers=3)
    sums = verify.summed_similarity(rows)
    middle = np.median(sums)
    spread = 1.4826 * np.median(np.abs(sums - middle))
    assert verify.mad_rule(rows, 3).threshold == pytest.approx(middle - 3 * spread)
    assert verify.paper_rule(rows, 3).threshold == pytest.approx(sums.mean() - 3 * sums.std())


def test_a_drop_says_its_cosine():
    rows = people(3, own=6, strangers=1)
    kept, gone, rules = verify.verify_person(
        [choice(n, embeddings=rows[[n]]) for n in range(7)], Verify()
    )
    assert [c.order for c in kept] == list(range(6)) and rules["median"] == 1
    assert gone[0].order == 6 and gone[0].value < 0.5 == gone[0].threshold
    assert gone[0].reason == "another person"


def test_nobody_and_one():
    assert verify.verify_person([], Verify())[0] == []
    assert len(verify.verify_person([choice()], Verify())[0]) == 1
