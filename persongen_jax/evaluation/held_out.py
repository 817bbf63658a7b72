"""Measures an attribute classifier on the pictures that it was not trained on."""

import numpy as np
from flax import nnx

from data_pipeline.attributes.vocabulary import UNKNOWN
from persongen_jax.evaluation.contact_sheet import Row, contact_sheet
from persongen_jax.evaluation.people import Result
from persongen_jax.evaluation.sampled import WIDE, as_rgb
from persongen_jax.metrics.attribute_scores import (
    correct_attributes,
    mean_over_images,
)
from persongen_jax.metrics.intervals.limits import SHARE
from persongen_jax.metrics.intervals.people import over_answers
from persongen_jax.metrics.measures import DESCRIPTION
from persongen_jax.systems.attribute_classifier import HELD_OUT, Classifier, classify

ABOUT = ("attribute accuracy", "{:.1%}", "images", True, SHARE)  # the values of DESCRIPTION


class Accuracy:
    """What a row names "accuracy"."""

    name, less_is_better, target = "accuracy", False, None


class HeldOut:
    """Accuracy of every attribute, and a sheet of pictures; see evaluation/validation.py."""

    generates, metrics = False, (Accuracy,)

    def __init__(self, system: Classifier):
        self.system = system
        self.should_stop = lambda: False

    def __call__(self, model: nnx.Module, step: int) -> dict[str, Result]:
        test, vocabulary = self.system.data.test, self.system.vocabulary
        logits, _ = classify(model, test.images, self.should_stop)
        known = test.values != UNKNOWN
        correct = correct_attributes(logits, test.values, known, vocabulary)
        parts = {}
        for i, name in enumerate(vocabulary.names):
            asked = ~np.isnan(correct[:, i])
            parts[name] = over_answers(correct[asked, i]).as_measure()
        about = {**dict(zip(DESCRIPTION, ABOUT, strict=True)), "judge": ""}
        row: dict = {"step": step, "set": HELD_OUT, "method": "classifier"}
        row |= {"seed": self.system.config.seed, "metrics": {}}
        row["metrics"]["accuracy"] = {**mean_over_images(correct), "parts": parts, **about}
        return {HELD_OUT: Result(row, as_rgb(np.stack(list(test.images[: 5 * WIDE]))))}

    def rows(self, name: str, images: np.ndarray) -> list[tuple[int, int, Row]]:
        found = []
        for i in range(0, len(images), WIDE):
            first, *others = images[i : i + WIDE]
            found.append((i // WIDE, 0, Row("held out", first, others or [first])))
        return found

    def sheet(self, name: str, images: np.ndarray) -> np.ndarray:
        return contact_sheet([row for *_, row in self.rows(name, images)])
