"""Validation on tiny random networks: settings, a metric, and plausible weights."""

import numpy as np

from persongen_jax.metrics.base import Metric, Values
from persongen_jax.systems.sdxl import Sdxl

FACE_NET = {"layers": (1, 1), "widths": (4, 8), "input_size": 16, "embedding_dim": 6}
METRICS = (
    *("clip_t", "brightness", "face_sim", "rank1_10", "rank1_100", "detection_rate"),
    *("face_sim_misses_as_0", "cosine_true", "cosine_others", "frechet_clip"),
    "joints_found",
)
SET = "people:{}?identities={}&pictures=2&size=48"


class Brightness(Metric):
    """A metric of a set from outside the package: generated minus real images."""

    name, title, form, over = "brightness", "brighter by", "{:+.1f}", "set"

    def __call__(self, generated, known):
        real = [p.mean() for owner in known.people.owners for p in owner.pictures()]
        return Values(generated.images.mean() - np.mean(real), facts={"n_real": len(real)})


OWN = {"brightness": "tests.evaluation.tiny:Brightness"}


def with_config(system, config):
    """The same networks with other settings."""
    return Sdxl(config, system.base, system.method)


def moved(trainable, seed):
    """Plausible trained weights; otherwise the identity would hardly show."""
    rng = np.random.default_rng(seed)
    draw = {path: rng.standard_normal(x.shape).astype(np.float32) for path, x in trainable.items()}
    return {path: x + 0.1 * draw[path] for path, x in trainable.items()}
