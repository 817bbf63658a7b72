"""The classifier that judges attributes: a finished run of systems/attribute_classifier.py."""

from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from data_pipeline.attributes.folder_pictures import square
from data_pipeline.attributes.vocabulary import RequestError
from persongen_jax.metrics.base import Generated, Known, People


class AttributeJudge:
    """A trained classifier, whose results for images are computed once.

    Attributes:
        vocabulary: the attributes that it classifies; weights: its own, a pytree of arrays.

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
                f"config.classifier={run!r}: {found.step} of {found.config.steps} steps are done; "
                "finish it first with the command that started it"
            )
        self._run, self._system = run, found.system
        self.vocabulary = found.system.vocabulary
        self.weights = jax.tree.leaves(nnx.state(found.system.model, nnx.Param))

    def score_generated(self, generated: Generated) -> tuple[np.ndarray, np.ndarray]:
        """Logits [n, K] and features [n, d] of the generated images."""
        return generated.once((self, "scores"), lambda: self.scores(generated.images))

    def of_people(self, people: People) -> np.ndarray:
        """Features [n, d] of all real images; n may be 0."""

        def compute():
            pictures = [picture for owner in people.owners for picture in owner.pictures()]
            return self.scores(pictures)[1] if pictures else np.zeros((0, 1), np.float32)

        return people.once((self, "features"), compute)

    def scores(self, images: Sequence[np.ndarray] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits [n, K] and features [n, d] of uint8 RGB images [n, h, w, 3].

        A classifier of grey images converts them to grey, as in its training.
        """
        size, _, channels = self._system.described.shape
        return self._system.scores([square(image, size, channels) for image in images])

    def check(self, known: Known) -> None:
        """ValueError if the classifier cannot judge images like those of a set."""
        size = self._system.described.shape[:2]
        first = next((owner.pictures(1)[0] for owner in known.people.owners), None)
        if first is not None and first.shape[:2] != size:
            raise ValueError(
                f"config.classifier={self._run!r} reads images of {size[0]}x{size[1]} pixels, "
                f"the run's have {first.shape[0]}x{first.shape[1]}; train a classifier with the "
                f"run's --config.data and --config.size={first.shape[0]}"
            )

    def parse(self, request: str) -> tuple[np.ndarray, np.ndarray]:
        """A request in terms of the classifier's attributes; see Vocabulary.parse.

        Raises:
            ValueError: the classifier lacks one of its attributes.
        """
        try:
            return self.vocabulary.parse(request)
        except RequestError as error:
            raise ValueError(
                f"config.classifier={self._run!r} cannot judge {request!r}: {error}; train a "
                "classifier with the run's --config.data"
            ) from error
