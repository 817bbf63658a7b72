"""The miniature's face recogniser: IResNet with ArcFace's loss on aligned crops.

It is the methods' own, for inputs and losses; figures use the judge (judges.py).
"""

from typing import Any

import jax
import numpy as np
from flax import nnx

from data_pipeline.examples.fields import Batch
from data_pipeline.faces.align import align_faces
from persongen_jax.miniature import sizes
from persongen_jax.miniature.losses import Centres, arcface_losses
from persongen_jax.miniature.pool import Pool, cached_array
from persongen_jax.miniature.systems.base import Drawn, PoolSystem
from persongen_jax.models.faces.iresnet import IResNet, normalise_faces

JITTER = 0.5  # pixels of the image: detectors do not find landmarks exactly
ROWS = 1000


class Recogniser(nnx.Module):
    """The net, and the people that it learns to distinguish, which serve training only."""

    def __init__(self, config: dict, people: int, rngs: nnx.Rngs):
        self.net = IResNet(config, rngs=rngs)
        self.people = Centres(people, self.net.config["embedding_dim"], rngs)


class FaceNet(PoolSystem):
    """Distinguishes people.

    Arrays of an example:
        crop: [s, s, 3] uint8, aligned.
        person: [] int32.
    """

    statistics = True

    @property
    def architecture(self) -> dict:
        return sizes.FACE_NET

    def network(self) -> Recogniser:
        return Recogniser(self.architecture, self.pool.people, nnx.Rngs(self.config.seed))

    def source(self) -> Drawn:
        self.crops = aligned_crops(self.pool)
        return super().source()

    def example(self, rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        row = rng.integers(len(self.pool))
        return {"crop": self.crops[row], "person": self.pool.person[row]}

    def losses(self, model: Any, batch: Batch, draws: dict[str, jax.Array]) -> dict[str, jax.Array]:
        embeddings = model.net(normalise_faces(batch["crop"]), use_running_average=False)
        return {"loss": arcface_losses(embeddings, model.people.embedding[...], batch["person"])}


def aligned_crops(pool: Pool) -> np.ndarray:
    """[n, s, s, 3] uint8 by the true landmarks, jittered; cached on disk."""

    def align_all():
        size = sizes.FACE_SIDE
        noise = np.random.default_rng(0).normal(0, JITTER, pool.landmarks.shape)
        parts = [
            align_faces(pool.images[i : i + ROWS], (pool.landmarks + noise)[i : i + ROWS], size)
            for i in range(0, len(pool), ROWS)
        ]
        return np.concatenate(parts)

    return cached_array(pool.folder / "aligned_crops.npy", align_all)
