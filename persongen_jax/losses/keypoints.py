"""Losses on the body's joints: BoLID's L_id (section 5.2), and one on proportions alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipeline.examples.fields import Field
from data_pipeline.examples.targets import TargetPoints
from persongen_jax.losses.base import Decoded, DecodedLoss
from persongen_jax.losses.pose_readers import open_pose_reader

# Of the twelve joints, COCO's 5 to 16: left before right.
SHOULDERS, HIPS = (0, 1), (6, 7)
# Breadths of shoulders and hips, upper arms, forearms, thighs, shins.
BONES = np.array([(0, 1), (6, 7), (0, 2), (1, 3), (2, 4), (3, 5), (6, 8), (7, 9), (8, 10), (9, 11)])
LEAST_TORSO = 0.02  # of the image's longer side: a shorter torso gives no scale
SMALLEST = 1e-12  # under roots, whose slope at 0 is infinite


class Keypoints(DecodedLoss):
    """L_id = sum_k |p_gen,k - p_ref,k|², coordinates in [0, 1] of the image's sides.

    The joints of the decoded image are a frozen network's, those of the target the record's. Joints
    that are unknown or hidden there do not count.
    """

    name, net_key, needs = "keypoints", "loss_pose_net", ("keypoints",)
    remedy = "finds joints by it: give keypoints:DIR or movenet:FILE.json"

    def network(self, *, abstract: bool = False) -> nnx.Module:
        return open_pose_reader(self.net, abstract=abstract)

    def fields(self, trigger_word: str) -> tuple[Field, ...]:
        return (TargetPoints("keypoints"),)

    def __call__(self, network: Any, decoded: Decoded) -> tuple[jax.Array, jax.Array]:
        height, width = decoded.size
        found = network(decoded.images)
        wanted = decoded.batch["keypoints"] / jnp.array([width, height], jnp.float32)
        return square_distance(found, wanted, decoded.batch["keypoints_mask"])


class Proportions(Keypoints):
    """Squared differences of the body's proportions: another pose costs nothing."""

    name = "proportions"

    def __call__(self, network: Any, decoded: Decoded) -> tuple[jax.Array, jax.Array]:
        height, width = decoded.size
        longer = max(height, width)
        found = network(decoded.images) * (jnp.array([width, height], jnp.float32) / longer)
        wanted = decoded.batch["keypoints"] / longer
        return proportion_error(found, wanted, decoded.batch["keypoints_mask"])


def square_distance(
    found: jax.Array, wanted: jax.Array, seen: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sums over seen joints: [b, 12, 2] twice and [b, 12] bool to [b]; and whether any is seen."""
    squares = ((found - jnp.where(seen[..., None], wanted, found)) ** 2).sum(-1)
    return squares.sum(-1), seen.any(-1)


def proportion_error(
    found: jax.Array, wanted: jax.Array, seen: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sum of squared differences of BONES' lengths in torsos, of bones with both ends seen.

    A torso reaches from between the hips to between the shoulders. Lengths know neither the
    person's place and size nor the directions of the limbs.

    Args:
        found, wanted: [b, 12, 2], in one unit along both axes, the image's longer side.
        seen: [b, 12] bool, of ``wanted``.

    Returns:
        [b], and whether the torso and any bone are seen [b].
    """
    bones = seen[:, BONES[:, 0]] & seen[:, BONES[:, 1]]
    scaled = seen[:, (*SHOULDERS, *HIPS)].all(-1) & (torso(wanted) > LEAST_TORSO)
    counted = bones & scaled[:, None]
    wanted = jnp.where(seen[..., None], wanted, found)
    errors = (proportions(found) - proportions(wanted)) ** 2
    return jnp.where(counted, errors, 0).sum(-1), counted.any(-1)


def proportions(joints: jax.Array) -> jax.Array:
    """Lengths of BONES in torsos, [b, 12, 2] to [b, 10]."""
    lengths = _length(joints[:, BONES[:, 0]] - joints[:, BONES[:, 1]])
    return lengths / jnp.maximum(torso(joints), LEAST_TORSO)[:, None]


def torso(joints: jax.Array) -> jax.Array:
    """[b, 12, 2] to the torso's length [b]."""
    return _length(joints[:, SHOULDERS, :].mean(1) - joints[:, HIPS, :].mean(1))


def _length(steps):
    return jnp.sqrt((steps**2).sum(-1) + SMALLEST)
