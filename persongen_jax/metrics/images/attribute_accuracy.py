"""Share of the requested attributes that our classifier recognises in the image."""

import numpy as np

from persongen_jax.metrics.attribute_scores import correct_attributes, per_image
from persongen_jax.metrics.base import Generated, Known, Values
from persongen_jax.metrics.judged import JudgedByClassifier


class AttributeAccuracy(JudgedByClassifier):
    """For each image, the share of its attributes that the classifier recognises as requested.

    ``Generated.texts`` are the requests. The parts are the attributes one by one; the fact
    "all_right" is the share of images with every attribute right.
    """

    name, title, form = "attribute_accuracy", "attribute accuracy", "{:.1%}"
    bounds = (0.0, 1.0)

    def prepare(self, known: Known) -> None:
        super().prepare(known)
        for owner in known.people.owners:
            self.attributes.parse(owner.name)

    def __call__(self, generated: Generated, known: Known) -> Values | None:
        if generated.texts is None:
            return None
        vocabulary = self.attributes.vocabulary
        asked = [self.attributes.parse(text) for text in generated.texts]
        values, told = (np.stack(rows) for rows in zip(*asked, strict=True))
        logits, _ = self.attributes.score_generated(generated)
        correct = correct_attributes(logits, values, told, vocabulary)
        shares = per_image(correct)
        asked_for = ~np.isnan(correct).all(0)
        parts = {name: correct[:, i] for i, name in enumerate(vocabulary.names) if asked_for[i]}
        answered = shares[~np.isnan(shares)]
        facts = {"all_right": float((answered == 1).mean()) if len(answered) else None}
        return Values(shares, parts=parts, facts=facts)
