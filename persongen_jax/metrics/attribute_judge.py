"""The classifier that judges attributes: a finished run of systems/attribute_classifier.py."""

import jax
import numpy as np
from flax import nnx

from persongen_jax.metrics.base import Generated, People


class AttributeJudge:
    """A trained classifier, with what it makes of pictures computed once.

    Attributes:
        vocabulary: the attributes that it tells; weights: its own, a pytree of arrays.

    Args:
        run: the classifier's working directory.

    Raises:
        ValueError: no run there, an unfinished one, or one of another system.
    """

    def __init__(self, run: str):
        from persongen_jax.systems.attribute_classifier import Classifier
        from persongen_jax.systems.open import open_run

        try:
            found = open_run(run)
        except FileNotFoundError as error:
            raise ValueError(
                f"config.classifier={run!r}: there is no trained classifier; train it first: "
                "python -m persongen_jax.train --config configs/attributes/classifier.py:DATA "
                f"--workdir {run} (DATA as config.data), or measure without it: "
                "--config.classifier=''"
            ) from error
        if not isinstance(found.system, Classifier):
            raise ValueError(
                f"config.classifier={run!r} is a run of {found.config.system}; give one of "
                "configs/attributes/classifier.py"
            )
        if found.step < found.config.steps:
            raise ValueError(
                f"config.classifier={run!r}: {found.step} of {found.config.steps} steps are made; "
                "finish it first, by the command that began it"
            )
        self._run, self._system = run, found.system
        self.vocabulary = found.system.vocabulary
        self.weights = jax.tree.leaves(nnx.state(found.system.model, nnx.Param))

    def of_generated(self, generated: Generated) -> tuple[np.ndarray, np.ndarray]:
        """Logits [n, K] and features [n, d] of the generated images."""
        return generated.once((self, "scores"), lambda: self.scores(generated.images))

    def of_people(self, people: People) -> np.ndarray:
        """Features [n, d] of all real pictures; n may be 0."""

        def compute():
            pictures = [picture for owner in people.owners for picture in owner.pictures()]
            return self.scores(pictures)[1] if pictures else np.zeros((0, 1), np.float32)

        return people.once((self, "features"), compute)

    def scores(self, images) -> tuple[np.ndarray, np.ndarray]:
        """Logits [n, K] and features [n, d] of uint8 RGB pictures [n, h, w, 3].

        Raises:
            ValueError: pictures of another size than the classifier's.
        """
        height, width, channels = self._system.described.shape
        found = np.shape(images[0])[:2]
        if found != (height, width):
            raise ValueError(
                f"config.classifier={self._run!r} reads pictures of {height}x{width} pixels, these "
                f"have {found[0]}x{found[1]}; train one with config.size={found[0]}"
            )
        return self._system.scores([image[..., :channels] for image in images])
