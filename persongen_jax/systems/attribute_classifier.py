"""The classifier that judges generated attributes, trained and evaluated on disjoint real images.

    python -m persongen_jax.train --config configs/attributes/classifier.py:digits \\
        --workdir runs/attributes/digits_classifier
    python -m persongen_jax.evaluate --run runs/attributes/digits_classifier
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.attributes.labelled import to_pixels
from data_pipeline.examples.fields import Batch
from persongen_jax.models.ddpm.classifier import GROUPS, AttributeClassifier
from persongen_jax.parallel.sharding import to_host
from persongen_jax.systems.on_attributes import AttributeSystem
from persongen_jax.training.stopping import Stopped

SHIFT, NOISE = range(2)  # purposes of random keys
AT_ONCE = 256  # images per forward pass
HELD_OUT = "held_out"


class Classifier(AttributeSystem):
    """Classifies every attribute of a data set; see data_pipeline/attributes/open.py."""

    evaluation = "persongen_jax.evaluation.held_out:HeldOut"

    def __init__(self, config: ConfigDict):
        self.config = config
        height, width, channels = self.described.shape
        if not config.widths or any(width % GROUPS for width in config.widths):
            raise ValueError(
                f"config.widths={tuple(config.widths)}: give one or more multiples of {GROUPS}"
            )
        halvings = len(config.widths) - 1
        if min(height, width) % 2**halvings:
            raise ValueError(
                f"images of {height}x{width} pixels cannot be halved {halvings} times; choose "
                "config.size, or fewer config.widths"
            )
        attributes = len(self.vocabulary)
        rngs = nnx.Rngs(config.seed)
        self.model = AttributeClassifier(channels, attributes, tuple(config.widths), rngs=rngs)

    @classmethod
    def defaults(cls) -> ConfigDict:
        config = super().defaults()
        config.widths = (32, 64, 128)
        # Generated images are not as clean as real ones, nor always centred.
        config.shift = 0.0625  # maximum, as a fraction of the side, rounded down to pixels
        config.noise = 0.05  # standard deviation, in [-1, 1]
        config.lr_model = 2e-3
        return config

    # ---- a step ----

    def draw(self, key_of: Callable[[int], jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """ "shift" [b, 2] whole pixels, "noise" shaped like the images."""
        b, height, *_ = batch["pixel_values"].shape
        most = int(height * self.config.shift)
        return {
            "shift": jax.random.randint(key_of(SHIFT), (b, 2), -most, most + 1),
            "noise": jax.random.normal(key_of(NOISE), batch["pixel_values"].shape),
        }

    def losses(self, model: Any, batch: Batch, draws: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Cross-entropy of every known attribute; within a group, over its members."""
        pictures = jax.vmap(_shifted)(batch["pixel_values"], draws["shift"])
        logits, _ = model(pictures + self.config.noise * draws["noise"])
        values, known = batch["attributes"], batch["attributes_known"]
        total, count = 0.0, 0.0
        grouped = [list(map(self._place, names)) for names in self.vocabulary.groups.values()]
        for places in grouped:
            there = known[:, places].all(-1)
            losses = optax.softmax_cross_entropy(logits[:, places], values[:, places])
            total, count = total + losses * there, count + there
        alone = [i for i in range(len(self.vocabulary)) if i not in sum(grouped, [])]
        if alone:
            losses = optax.sigmoid_binary_cross_entropy(logits[:, alone], values[:, alone])
            total = total + (losses * known[:, alone]).sum(-1)
            count = count + known[:, alone].sum(-1)
        return {"loss": total / jnp.maximum(count, 1)}

    def _place(self, name: str) -> int:
        return self.vocabulary.names.index(name)

    # ---- evaluation ----

    @classmethod
    def validation_sets_of(cls, config: ConfigDict) -> tuple[str, ...]:
        return (HELD_OUT,)

    def scores(self, pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Maps uint8 images, n of [h, w, c], to logits [n, K] and features [n, d]."""
        return classify(self.model, pictures)


def _shifted(picture, shift):
    """[h, w, c] shifted by ``shift`` [2] whole pixels; what leaves on one side is lost."""
    most = picture.shape[0]
    padded = jnp.pad(picture, ((most, most), (most, most), (0, 0)), mode="edge")
    return jax.lax.dynamic_slice(padded, (most + shift[0], most + shift[1], 0), picture.shape)


def classify(
    model: nnx.Module,
    pictures: Sequence[np.ndarray],
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[np.ndarray, np.ndarray]:
    """Maps uint8 images, a sequence of n [h, w, c], to float32 logits [n, K] and features [n, d].

    Raises:
        Stopped: ``should_stop`` returned True.
    """
    graphdef, state = nnx.split(model)
    logits, features = [], []
    for start in range(0, len(pictures), AT_ONCE):
        if should_stop():
            raise Stopped
        here = to_pixels(np.stack([np.asarray(p) for p in pictures[start : start + AT_ONCE]]))
        # Padded, so that every part has the same shape.
        filled = np.concatenate([here, np.zeros((AT_ONCE - len(here), *here.shape[1:]), "f")])
        rows = [to_host(part) for part in _classify(graphdef, state, filled)]
        logits.append(rows[0][: len(here)])
        features.append(rows[1][: len(here)])
    return np.concatenate(logits), np.concatenate(features)


@functools.partial(jax.jit, static_argnums=0)
def _classify(graphdef, state, pictures):
    return nnx.merge(graphdef, state)(pictures)
