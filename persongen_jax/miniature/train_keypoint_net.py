"""The miniature's keypoint net: where the face, its landmarks and the joints are."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from persongen_jax.miniature import sizes
from persongen_jax.miniature.fit import fit
from persongen_jax.miniature.optimizer import make_muon
from persongen_jax.miniature.pool import Pool
from persongen_jax.models.keypoint_net import KeypointNet

STEPS, BATCH, RATE, ADAM_RATE = 1000, 96, 5e-3, 2e-3
NOBODY = 16  # of a batch: pictures without a face
SEED = 4


def train_keypoint_net(pool: Pool, work: Path, steps: int = STEPS):
    """Returns (KeypointNet, cost)."""
    graphdef, params = nnx.split(KeypointNet(sizes.KEYPOINT_NET, rngs=nnx.Rngs(SEED)), nnx.Param)
    tx = make_muon(RATE, steps, ADAM_RATE)

    def loss_of(params, batch):
        images, somebody, box, landmarks, keypoints, visibility = batch
        out = nnx.merge(graphdef, params)(images.astype(jnp.float32) / 127.5 - 1)
        seen = jnp.repeat(visibility, 2, axis=-1)
        visible = optax.sigmoid_binary_cross_entropy(out.visibility, visibility).mean(1)
        # The face is what everything else hangs on: it weighs more than the joints.
        parts = {
            "box": _distance(out.face_box, box, 1.0),
            "landmarks": 2 * _distance(out.landmarks, landmarks, 1.0),
            "keypoints": _distance(out.keypoints, keypoints, seen),
            "visible": 0.02 * visible,
        }
        parts = {name: (part * somebody).sum() / somebody.sum() for name, part in parts.items()}
        present = optax.sigmoid_binary_cross_entropy(out.present, somebody).mean()
        return sum(parts.values()) + 0.02 * present, {**parts, "present": present}

    @jax.jit
    def step(state, batch, _):
        params, opt_state = state
        grads, metrics = jax.grad(loss_of, has_aux=True)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), metrics

    def batch_of(rng, _):
        rows = np.sort(rng.integers(0, len(pool), BATCH))
        images = np.array(pool.images[rows])
        for i in range(NOBODY):
            images[i] = _without_face(rng, images[i], pool.face_box[rows[i]])
        somebody = (np.arange(BATCH) >= NOBODY).astype(np.float32)
        points = (getattr(pool, name)[rows] / sizes.SIDE for name in POSITIONS)
        points = [array.astype(np.float32) for array in points]
        return images, somebody, *points, pool.visibility[rows].astype(np.float32)

    state = params, tx.init(params)
    (params, _), cost = fit("keypoint_net", work, state, step, batch_of, steps, SEED)
    return nnx.merge(graphdef, params), cost


POSITIONS = ("face_box", "landmarks", "keypoints")


def _distance(found, true, weight):
    """Mean absolute error per example, weighted: [b, ...] to [b]."""
    found, true = (x.reshape(len(x), -1) for x in (found, true))
    weight = jnp.broadcast_to(weight, true.shape)
    return (weight * jnp.abs(found - true)).sum(1) / jnp.maximum(weight.sum(1), 1)


def _without_face(rng, image, box):
    """The picture with its face's place filled by noise, by another part of it, or by blocks."""
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
