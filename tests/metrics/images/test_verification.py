"""Verification rates: threshold and pairs by hand, too few pairs, and images without a face."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest

from persongen_jax.evaluation.comparison import table
from persongen_jax.metrics.images.verification import threshold_at
from persongen_jax.metrics.measures import measure_all
from persongen_jax.metrics.registry import find_class
from tests.metrics.known import TableJudges, generated, known_set

CONFIG = SimpleNamespace(face_net="net.onnx")
OWN, OTHERS = 4, 40  # people, the first of whom are generated


def measured(judges, made, known, *names):
    return measure_all([find_class(name)(CONFIG, judges) for name in names], made, known)


@pytest.fixture(scope="module")
def world():
    """Three pictures of everyone; person i's are the rows 3 i to 3 i + 2 of the table."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((OTHERS, 6))
    rows = centres.repeat(3, axis=0) + 0.3 * rng.standard_normal((3 * OTHERS, 6))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    people = {f"p{i:02d}": [3 * i, 3 * i + 1, 3 * i + 2] for i in range(OTHERS)}
    return rows, people, known_set(dict(list(people.items())[:OWN]), people)


def test_the_threshold_admits_the_stated_share_of_impostors():
    cosines = np.random.default_rng(0).permutation(3000) / 3000
    for far, accepted in ((1e-2, 30), (1e-3, 3), (0.0005, 1)):
        assert (cosines > threshold_at(cosines, far)).sum() == accepted
        assert (cosines >= threshold_at(cosines, far)).sum() == accepted + 1  # the lowest such
    assert (np.ones(100) > threshold_at(np.ones(100), 1e-2)).sum() == 0  # ties are not accepted


def test_rate_pairs_and_threshold_by_hand(world):
    rows, people, known = world
    pairs = [rows[a[0]] @ rows[b[0]] for a, b in combinations(people.values(), 2)]
    pairs += [
        rows[picture] @ rows[other[0]]
        for name, own in people.items()
        for picture in own[1:]
        for who, other in people.items()
        if who != name
    ]
    threshold = sorted(pairs)[-1 - int(len(pairs) * 0.01)]
    # Generated: each owner's second picture, then somebody else's; one image has no face.
    numbers = [1, 4, 7, 10, 3 * OTHERS - 1, 3 * OTHERS]
    found = [True] * 3 * OTHERS + [False]
    judges = TableJudges([*rows, np.full(6, np.nan)], found)
    owners = ["p00", "p01", "p02", "p03", "p00", "p01"]
    pairs_of_five = zip(numbers[:5], owners[:5], strict=True)
    wanted = [rows[n] @ rows[people[who][0]] > threshold for n, who in pairs_of_five]
    measures = measured(judges, generated(numbers, owners), known, "tar_far_1e2", "tar_far_1e3")
    found = measures["tar_far_1e2"]
    assert found["mean"] == pytest.approx(sum(wanted) / 6) and 0 < found["mean"] < 1
    assert found["n"] == 6 and found["no_face"] == 1
    assert found["impostor_pairs"] == len(pairs) == 40 * 39 // 2 + 80 * 39
    assert found["threshold"] == pytest.approx(threshold, abs=1e-6)
    assert (found["far"], found["impostor_people"]) == (0.01, 40)
    assert "too few" not in found["note"] and "3,900 impostor pairs of 40 people" in found["note"]
    strict = measures["tar_far_1e3"]
    assert strict["threshold"] > found["threshold"] and strict["mean"] <= found["mean"]
    assert "too few for this FAR to be exact, which takes about 30,000" in strict["note"]
    assert f"TAR@FAR=1e-3 (own): {strict['note']}." in table([("", "own", 1, measures)])


def test_too_few_pairs_give_no_figure(world, capsys):
    rows, people, _ = world
    judges, three = TableJudges(rows), known_set(dict(list(people.items())[:3]))
    made = generated([1, 4], ["p00", "p01"])
    assert measured(judges, made, three, "tar_far_1e2", "tar_far_1e4") == {}
    said = capsys.readouterr().out.splitlines()
    assert said[0] == (
        "in_train: TAR@FAR=1e-2 gives no figure: 15 impostor pairs of 3 people, and a FAR of 0.01 "
        "needs at least 100: give more people with real pictures (config.validation_gallery, or "
        "--gallery)"
    )
    assert "needs at least 10,000" in said[1]
    alone = known_set({"p00": [0]})
    assert measured(judges, generated([1], ["p00"]), alone, "tar_far_1e2") == {}
    assert "0 impostor pairs of 1 people" in capsys.readouterr().out


def test_owners_without_a_face_in_their_reference_are_missing(world):
    rows, people, known = world
    found = np.ones(len(rows), bool)
    found[0] = False  # the reference of p00
    measures = measured(
        TableJudges(rows, found), generated([1, 4], ["p00", "p01"]), known, "tar_far_1e2"
    )
    assert measures["tar_far_1e2"]["missing"] == 1 and measures["tar_far_1e2"]["n"] == 1
    assert measures["tar_far_1e2"]["impostor_people"] == 40  # its other pictures are in the gallery
