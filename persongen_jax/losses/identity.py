"""Similarity of the face by a frozen recogniser, as PuLID's and others' ID losses."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.scipy.ndimage import map_coordinates

from data_pipeline.examples.fields import Field
from data_pipeline.examples.targets import TargetPoints
from data_pipeline.faces.align import TEMPLATE, TEMPLATE_SIZE
from persongen_jax.losses.base import Decoded, DecodedLoss
from persongen_jax.losses.clip import cosine
from persongen_jax.models.faces.iresnet import IResNet
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.formats.recognisers import open_recogniser

ENLARGED = 0.2  # a box without landmarks, on either side, as references are cropped
SMALLEST = 1.0  # pixels; a face without extent does not count


class Identity(DecodedLoss):
    """1 - cos of the recogniser's embeddings of the decoded face and of the target's.

    Both faces are cut at the same place, by the target's landmarks moved onto ArcFace's template.
    Where landmarks are unknown, or one lies outside of the target, by the square around the face
    box; FaceNet always reads the box.
    """

    name, net_key, reads_target = "identity", "loss_face_net", True
    needs = ("landmarks", "face_box")
    remedy = "compares faces by it: give a recogniser's file, or sface"

    def network(self, *, abstract: bool = False) -> nnx.Module:
        if abstract and self.net != "sface" and not Path(self.net).exists():
            return IResNet({}, dtype=jnp.float32, param_dtype=jnp.float32, rngs=UnusedRngs())
        recogniser = open_recogniser(self.net)
        if not abstract:
            said = f"the loss 'identity' reads faces by {self.net}; its licence: "
            print(said + recogniser.licence, file=sys.stderr)
        return recogniser.model

    def fields(self, trigger_word: str) -> tuple[Field, ...]:
        return (TargetPoints("landmarks"),)

    def __call__(self, network: Any, decoded: Decoded) -> tuple[jax.Array, jax.Array]:
        config, batch = network.config, decoded.batch
        size, smaller = config["input_size"], decoded.images.shape[1] / decoded.size[0]
        by_box, there = box_places(batch["face_box"] * smaller, size)
        places, counted = by_box, there
        if config.get("crop", "aligned") == "aligned":
            aligned, scaled = aligned_places(batch["landmarks"] * smaller, size)
            known = batch["landmarks_mask"].all(-1) & scaled
            places = jnp.where(known[:, None, None, None], aligned, by_box)
            counted = known | there
        ours = network(2 * cut(decoded.images, places) - 1)
        theirs = jax.lax.stop_gradient(network(2 * cut(decoded.target(), places) - 1))
        return 1 - cosine(ours, theirs), counted


def aligned_places(landmarks: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Where the pixels of aligned crops lie (data_pipeline/faces/align.py).

    Args:
        landmarks: [b, 5, 2] (x, y) in pixels, origin "corner". size: side of the crops.

    Returns:
        [b, size, size, 2] (x, y), origin "centre"; and whether the face has an extent [b].
    """
    template = jnp.asarray(TEMPLATE * (size / TEMPLATE_SIZE), jnp.float32)
    points = landmarks - 0.5
    there_mean, here_mean = template.mean(0), points.mean(1)
    here, there = points - here_mean[:, None], template - there_mean
    # The similarity from the crop's pixels to the image's is the inverse of the one in align.py.
    spread = (here**2).sum((1, 2))
    scaled = spread > SMALLEST
    a = (here * there).sum((1, 2))
    b = (here[..., 0] * there[:, 1] - here[..., 1] * there[:, 0]).sum(1)
    norm = jnp.maximum(a**2 + b**2, 1e-12) / jnp.where(scaled, spread, 1)
    a, b = a / norm, -b / norm
    steps = _pixels(size) - there_mean
    x = a[:, None, None] * steps[..., 0] - b[:, None, None] * steps[..., 1]
    y = b[:, None, None] * steps[..., 0] + a[:, None, None] * steps[..., 1]
    return jnp.stack([x, y], -1) + here_mean[:, None, None], scaled


def box_places(boxes: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """The same for the enlarged squares around boxes [b, 4]; and whether there is a box [b]."""
    corners = boxes.reshape(-1, 2, 2)
    extent = corners[:, 1] - corners[:, 0]
    side = jnp.maximum(extent.max(-1), 1) * (1 + 2 * ENLARGED)
    middle = corners.mean(1)
    steps = (_pixels(size) + 0.5) / size - 0.5
    places = middle[:, None, None] + side[:, None, None, None] * steps - 0.5
    return places, extent.min(-1) > SMALLEST


def _pixels(size):
    """[size, size, 2] (x, y)."""
    return jnp.stack(jnp.meshgrid(jnp.arange(size), jnp.arange(size)), -1).astype(jnp.float32)


def cut(images: jax.Array, places: jax.Array) -> jax.Array:
    """Bilinear samples of [b, h, w, 3] at [b, s, s, 2] (x, y), black outside: [b, s, s, 3]."""

    def channel(image, where):
        return map_coordinates(image, [where[..., 1], where[..., 0]], order=1, mode="constant")

    return jax.vmap(jax.vmap(channel, (2, None), 2))(images, places)
