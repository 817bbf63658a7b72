"""Share of the attributes asked for that our classifier reads in the image."""

import numpy as np

from persongen_jax.metrics.attribute_scores import right
from persongen_jax.metrics.base import Values
from persongen_jax.metrics.judged import JudgedByClassifier


class AttributeAccuracy(JudgedByClassifier):
    """Of each image the share of its attributes that the classifier reads as they were asked for.

    ``Generated.texts`` are the requests. The parts are the attributes one by one; the fact
    "all_right" is the share of images with every attribute right.
    """

    name, title, form = "attribute_accuracy", "attribute accuracy", "{:.1%}"

    def prepare(self, known):
        for owner in known.people.owners:
            self.attributes.vocabulary.parse(owner.name)

    def __call__(self, generated, known):
        if generated.texts is None:
            return None
        vocabulary = self.attributes.vocabulary
        asked = [vocabulary.parse(text) for text in generated.texts]
        values, told = (np.stack(rows) for rows in zip(*asked, strict=True))
        logits, _ = self.attributes.of_generated(generated)
        correct = right(logits, values, told, vocabulary)
        answered = ~np.isnan(correct)
        n = answered.sum(1)
        rights = np.where(answered, correct, 0).sum(1)
        shares = np.where(n > 0, rights / np.maximum(n, 1), np.nan)
        parts = {
            name: correct[:, i] for i, name in enumerate(vocabulary.names) if answered[:, i].any()
        }
        whole = rights[n > 0] == n[n > 0]
        facts = {"all_right": float(whole.mean()) if len(whole) else None}
        return Values(shares, parts=parts, facts=facts)
