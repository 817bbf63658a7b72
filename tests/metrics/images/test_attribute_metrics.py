"""Attribute accuracy, Fréchet distance, precision and recall in a classifier's features."""

import json

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from benchmarks.attributes import compare_frechet
from data_pipeline.attributes.vocabulary import Vocabulary
from persongen_jax.evaluation.comparison import table
from persongen_jax.metrics.attribute_scores import (
    correct_attributes,
    mean_over_images,
)
from persongen_jax.metrics.base import Generated, Known, Owner, People
from persongen_jax.metrics.images.attribute_accuracy import AttributeAccuracy
from persongen_jax.metrics.measures import join_measures, measure_all
from persongen_jax.metrics.sets.frechet_attributes import FrechetAttributes
from persongen_jax.metrics.sets.frechet_clip import frechet_distance
from persongen_jax.metrics.sets.precision_recall import (
    PrecisionAttributes,
    RecallAttributes,
    coverage,
)

FACES = Vocabulary(("glasses", "beard"))
DIGITS = Vocabulary.of_classes("digit", ["0", "1", "2"])


class Judge:
    """Reads the attributes from the first pixels, and uses the mean colour as features."""

    vocabulary, weights = FACES, [np.ones((2, 2))]
    parse = staticmethod(FACES.parse)

    def check(self, known):
        pass

    def score_generated(self, generated):
        logits = np.asarray(generated.images[:, 0, :2, 0], float) - 100
        return logits, self.of(generated.images)

    def of_people(self, people):
        pictures = [p for owner in people.owners for p in owner.pictures()]
        return self.of(np.stack(pictures)) if pictures else np.zeros((0, 3))

    @staticmethod
    def of(images):
        return np.asarray(images, float).mean((1, 2))


class Judges:
    attributes = Judge()


class Config(dict):
    classifier = "a run"


def opened(cls):
    return cls(Config(), Judges())


def generated(rows, texts):
    """Images whose attributes are recognised as ``rows``."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (len(rows), 4, 4, 3)).astype(np.uint8)
    images[:, 0, :2, 0] = np.asarray(rows) * 200
    return Generated(images, texts, texts)


def known(images):
    people = People(lambda: [Owner("glasses=1,beard=0", list, lambda limit=None: list(images))])
    return Known("seen", people, People(list))


def test_each_attribute_is_asked_for_itself():
    logits = np.array([[2.0, -1.0], [2.0, 3.0], [-1.0, 1.0]])
    values, told = np.array([[1, 0], [0, 1], [1, 1]]), np.array([[1, 1], [1, 0], [0, 1]])
    correct = correct_attributes(logits, values, told, FACES)
    np.testing.assert_array_equal(correct, [[1, 1], [0, np.nan], [np.nan, 1]])


def test_of_a_group_the_largest_logit_counts_for_who_was_asked_for():
    logits = np.array([[0.1, 3.0, 5.0], [9.0, 8.0, 7.0], [-3.0, -2.0, -9.0]])
    values, told = np.eye(3), np.ones((3, 3))
    correct = correct_attributes(logits, values, told, DIGITS)
    np.testing.assert_array_equal(np.nan_to_num(correct.diagonal(), nan=9), [0, 0, 0])
    assert np.isnan(correct).sum() == 6
    correct = correct_attributes(logits, np.eye(3)[[2, 0, 1]], told, DIGITS)
    assert np.nansum(correct) == 3


def test_answers_of_a_picture_count_together():
    found = mean_over_images(np.array([[1, 1], [0, 0], [1, np.nan], [np.nan, np.nan]]))
    assert found["n"] == 3 and found["mean"] == pytest.approx(2 / 3)
    assert 0 <= found["low"] < 0.2 and 0.9 < found["high"] <= 1


def test_accuracy_with_its_parts_and_their_intervals():
    texts = ["glasses=1,beard=0", "glasses=1,beard=0", "glasses=0", "glasses=1,beard=1"]
    images = generated([(1, 0), (0, 0), (0, 1), (1, 1)], texts)
    metric = opened(AttributeAccuracy)
    measure = measure_all([metric], images, known(images.images))["attribute_accuracy"]
    assert measure["mean"] == pytest.approx((1 + 0.5 + 1 + 1) / 4) and measure["n"] == 4
    assert measure["all_right"] == 0.75
    assert measure["parts"]["glasses"]["mean"] == 0.75 and measure["parts"]["glasses"]["n"] == 4
    assert measure["parts"]["beard"]["n"] == 3
    assert measure["parts"]["glasses"]["low"] < 0.75 < measure["parts"]["glasses"]["high"]
    assert "people" in measure and "people" not in measure["parts"]["beard"]

    page = table([("", "seen", 1, {"attribute_accuracy": measure})])
    assert "| attribute accuracy | seen |" in page and "| glasses | 75.0% (" in page
    both = join_measures([measure, measure])
    assert both["runs"] == 2 and "parts" not in both


def test_a_part_of_one_owner_has_an_interval_too():
    texts = ["glasses=1"] * 10
    images = generated([(1, 0)] * 8 + [(0, 0)] * 2, texts)
    measure = measure_all([opened(AttributeAccuracy)], images, known(images.images))
    part = measure["attribute_accuracy"]["parts"]["glasses"]
    assert (part["mean"], round(part["low"], 4), part["n"]) == (0.8, 0.4902, 10)


def test_an_attribute_that_the_judge_does_not_know_is_refused_at_the_start():
    people = People(lambda: [Owner("hat=1", list, list)])
    with pytest.raises(ValueError, match="no 'hat'"):
        opened(AttributeAccuracy).prepare(Known("seen", people, People(list)))


def test_frechet_is_that_of_the_features():
    images = generated(np.zeros((12, 2)), ["glasses=0"] * 12)
    real = np.random.default_rng(1).integers(0, 200, (20, 4, 4, 3)).astype(np.uint8)
    values = opened(FrechetAttributes)(images, known(real))
    assert values.values == frechet_distance(Judge.of(images.images), Judge.of(real))
    assert (values.n, values.facts) == (12, {"n_real": 20})
    assert opened(FrechetAttributes)(images, known(real[:1])) is None


def test_among_is_the_paper_s():
    """Against scikit-learn's neighbours."""
    rng = np.random.default_rng(0)
    members, points = rng.normal(size=(60, 3)), rng.normal(size=(40, 3)) * 1.5
    reach = NearestNeighbors(n_neighbors=4).fit(members).kneighbors(members)[0][:, 3]
    distances = np.linalg.norm(points[:, None] - members, axis=-1)
    assert coverage(points, members) == (distances <= reach).any(1).mean()
    assert 0 < coverage(points, members) < 1


def test_precision_and_recall_take_sides():
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 255, (30, 1, 1, 3)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    narrow = generated(np.zeros((8, 2)), ["glasses=0"] * 8)
    narrow.images[:] = wide[:1]
    precision, recall = (
        opened(cls)(narrow, known(wide)) for cls in (PrecisionAttributes, RecallAttributes)
    )
    assert precision.values == 1 and recall.values < 0.5
    assert opened(RecallAttributes)(narrow, known(wide[:3])) is None


def test_a_study_s_distances_are_compared_seed_by_seed(tmp_path):
    for method, file, shift in (("ddpm", "with", 0.0), ("unconditional", "without", 1.0)):
        for seed in range(3):
            row = {"set": "seen", "method": method, "seed": seed}
            row["metrics"] = {"frechet_attributes": {"mean": 5 + (10 + shift / 10) * seed + shift}}
            folder = tmp_path / file / f"seed_{seed}" / "evaluation" / "step_000009"
            folder.mkdir(parents=True)
            (folder / "metrics.json").write_text(json.dumps([row, {**row, "set": "unseen"}]))
    said = compare_frechet(tmp_path)
    assert "| 2 | 25.000 | 26.200 | -1.200 |" in said
    # Student's t of 4.303 times 0.1 / √3.
    assert "-1.100 (-1.348 to -0.852)" in said and "the distance is lower" in said
    with pytest.raises(ValueError, match="no seed with both runs evaluated"):
        compare_frechet(tmp_path / "with")
