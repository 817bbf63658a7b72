"""The miniature's keypoint net: finds the face, its landmarks and the joints."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import ArrayLike

from data_pipeline.examples.fields import Batch
from persongen_jax.miniature import sizes
from persongen_jax.miniature.systems.base import PoolSystem, to_pixels
from persongen_jax.models.faces.keypoint_net import KeypointNet

NOBODY = 6  # every sixth example is an image without a face
SOMEBODY = 1 - 1 / NOBODY
POSITIONS = ("face_box", "landmarks", "keypoints")


class Keypoints(PoolSystem):
    """Finds one person; one image in ``NOBODY`` has no face.

    Arrays of an example:
        image: [s, s, 3] uint8.
        somebody: [] 1 or 0, float32 like all that follow.
        face_box: [4], landmarks: [5, 2], keypoints: [12, 2], in sides of the frame.
        visibility: [12] 1 or 0.
    """

    @property
    def architecture(self) -> dict:
        return sizes.KEYPOINT_NET

    def network(self) -> KeypointNet:
        return KeypointNet(self.architecture, rngs=nnx.Rngs(self.config.seed))

    def example(self, rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        pool, row = self.pool, rng.integers(len(self.pool))
        image, somebody = pool.images[row], n % NOBODY > 0
        if not somebody:
            image = without_face(rng, np.array(image), pool.face_box[row])
        truth = {name: getattr(pool, name)[row] / sizes.SIDE for name in POSITIONS}
        truth |= {"somebody": somebody, "visibility": pool.visibility[row]}
        return {"image": image} | {name: np.float32(x) for name, x in truth.items()}

    def losses(self, model: Any, batch: Batch, draws: dict[str, jax.Array]) -> dict[str, jax.Array]:
        out, somebody = model(to_pixels(batch["image"])), batch["somebody"]
        visibility = batch["visibility"]
        seen = jnp.repeat(visibility, 2, axis=-1)
        visible = optax.sigmoid_binary_cross_entropy(out.visibility, visibility).mean(1)
        # Everything else depends on the face: it weighs more than the joints.
        parts = {
            "box": distance(out.face_box, batch["face_box"], 1.0),
            "landmarks": 2 * distance(out.landmarks, batch["landmarks"], 1.0),
            "keypoints": distance(out.keypoints, batch["keypoints"], seen),
            "visible": 0.02 * visible,
        }
        # Only images with a face have these: scale the mean over all to that over those.
        parts = {name: part * somebody / SOMEBODY for name, part in parts.items()}
        present = optax.sigmoid_binary_cross_entropy(out.present, somebody)
        return {"loss": sum(parts.values()) + 0.02 * present, **parts, "present": present}


def distance(found: jax.Array, true: jax.Array, weight: ArrayLike) -> jax.Array:
    """Mean absolute error per example, weighted: [b, ...] to [b]."""
    found, true = (x.reshape(len(x), -1) for x in (found, true))
    weight = jnp.broadcast_to(weight, true.shape)
    return (weight * jnp.abs(found - true)).sum(1) / jnp.maximum(weight.sum(1), 1)


def without_face(rng: np.random.Generator, image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The image with its face replaced by noise, by another part of it, or by blocks."""
    x0, y0, x1, y1 = np.clip([*np.floor(box[:2]) - 2, *np.ceil(box[2:]) + 2], 0, 64).astype(int)
    kind = rng.integers(3)
    if kind == 0:
        image[y0:y1, x0:x1] = rng.integers(0, 256, (y1 - y0, x1 - x0, 3))
    elif kind == 1:
        image[y0:y1, x0:x1] = image[rng.integers(64), rng.integers(64)]
    else:
        blocks = image.reshape(8, 8, 8, 8, 3).swapaxes(1, 2).reshape(64, 8, 8, 3)
        blocks = blocks[rng.permutation(64)].reshape(8, 8, 8, 8, 3)
        image = blocks.swapaxes(1, 2).reshape(64, 64, 3)
    return image
