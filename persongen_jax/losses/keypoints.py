"""Losses on the body's joints: BoLID's L_id (section 5.2), and one on proportions alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipeline.examples.fields import Field
from data_pipeline.examples.targets import TargetPoints
from data_pipeline.pose.movenet import TERMS
from data_pipeline.records.schema import Record
from persongen_jax.losses.base import Decoded, DecodedLoss
from persongen_jax.losses.pose_readers import MoveNetReader, open_pose_reader
from persongen_jax.weights.licences import say_terms

# Of the twelve joints, COCO's 5 to 16: left before right.
SHOULDERS, HIPS = (0, 1), (6, 7)
# Breadths of shoulders and hips, upper arms, forearms, thighs, shins.
BONES = np.array([(0, 1), (6, 7), (0, 2), (1, 3), (2, 4), (3, 5), (6, 8), (7, 9), (8, 10), (9, 11)])
# Of the image's longer side: a target with a shorter torso has no scale; below these a length's
# logarithm goes on as a straight line, so that a collapsed body has finite values and slopes.
LEAST_TORSO, LEAST_BONE = 0.08, 0.02
LARGE = 0.5  # difference of logarithms from which it counts linearly
SMALLEST = 1e-12  # under roots, whose slope at 0 is infinite


class Keypoints(DecodedLoss):
    """L_id = sum_k |p_gen,k - p_ref,k|², coordinates in [0, 1] of the image's sides.

    The joints of the decoded image are a frozen network's, those of the target the record's. Joints
    that are unknown or hidden there do not count.
    """

    name, net_key, needs = "keypoints", "loss_pose_net", "visible keypoints"
    remedy = "finds joints by it: give keypoints:DIR or movenet:FILE.json"

    def network(self) -> nnx.Module:
        reader = open_pose_reader(self.net, abstract=self.abstract)
        if isinstance(reader, MoveNetReader) and not self.abstract:
            path = self.net.partition(":")[2]
            say_terms(f"the loss {self.name!r} finds joints by {path}", path, "movenet", TERMS)
        return reader

    def fields(self, trigger_word: str) -> tuple[Field, ...]:
        return (TargetPoints("keypoints"),)

    def comparable(self, record: Record) -> bool:
        return bool(_visible(record).any())

    def __call__(self, network: Any, decoded: Decoded) -> tuple[jax.Array, jax.Array]:
        height, width = decoded.size
        found = network(decoded.images)
        wanted = decoded.batch["keypoints"] / jnp.array([width, height], jnp.float32)
        return square_distance(found, wanted, decoded.batch["keypoints_mask"])


class Proportions(Keypoints):
    """Differences of the body's proportions: another pose costs nothing."""

    name, needs = "proportions", "visible shoulders and hips"

    def comparable(self, record: Record) -> bool:
        return bool(_visible(record)[[*SHOULDERS, *HIPS]].all())

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
    """Sum over BONES with both ends seen of how far their ``proportions`` differ, by ``huber``.

    Lengths know neither the person's place and size nor the directions of the limbs.

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
    errors = huber(proportions(found) - proportions(wanted))
    return jnp.where(counted, errors, 0).sum(-1), counted.any(-1)


def proportions(joints: jax.Array) -> jax.Array:
    """Natural logarithms of BONES' lengths in torsos, [b, 12, 2] to [b, 10].

    A torso reaches from between the hips to between the shoulders.
    """
    lengths = _length(joints[:, BONES[:, 0]] - joints[:, BONES[:, 1]])
    return bounded_log(lengths, LEAST_BONE) - bounded_log(torso(joints), LEAST_TORSO)[:, None]


def bounded_log(lengths: jax.Array, least: float) -> jax.Array:
    """log above ``least``, its tangent below: slopes are at most 1 / least."""
    return jnp.log(jnp.maximum(lengths, least)) + jnp.minimum(lengths / least, 1) - 1


def huber(differences: jax.Array) -> jax.Array:
    """Squares up to LARGE, from there on straight lines, so that no bone outweighs the others."""
    size = jnp.abs(differences)
    small = jnp.minimum(size, LARGE)
    return small**2 + 2 * LARGE * (size - small)


def torso(joints: jax.Array) -> jax.Array:
    """[b, 12, 2] to the torso's length [b]."""
    return _length(joints[:, SHOULDERS, :].mean(1) - joints[:, HIPS, :].mean(1))


def _visible(record):
    """[12] bool, which of a record's joints are known and visible."""
    if record.keypoints is None:
        return np.zeros(12, bool)
    return np.ones(12, bool) if record.visibility is None else np.array(record.visibility, bool)


def _length(steps):
    return jnp.sqrt((steps**2).sum(-1) + SMALLEST)
