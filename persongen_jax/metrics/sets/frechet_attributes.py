"""The Fréchet distance (Heusel et al., arXiv 1706.08500, section 2) in our classifier's features.

Not FID, whose features are Inception's. Only figures from the same classifier and equal numbers of
images are comparable.
"""

from persongen_jax.metrics.base import Generated, Known, Values
from persongen_jax.metrics.judged import JudgedByClassifier
from persongen_jax.metrics.sets.frechet_clip import frechet_distance


class FrechetAttributes(JudgedByClassifier):
    """Distance of the generated images to the set's real images, at least 0.

    The fact "n_real" is the number of real images. None with fewer than two on either side.
    """

    name, title, form, over = "frechet_attributes", "Fréchet (attributes)", "{:.3f}", "set"
    less_is_better = True

    def __call__(self, generated: Generated, known: Known) -> Values | None:
        real = self.attributes.of_people(known.people)
        if min(len(real), len(generated.images)) < 2:
            return None
        _, features = self.attributes.score_generated(generated)
        distance = frechet_distance(features, real)
        return Values(distance, n=len(features), facts={"n_real": len(real)})
