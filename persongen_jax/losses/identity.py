"""Similarity of the face by a frozen recogniser, as PuLID's and others' ID losses."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.scipy.ndimage import map_coordinates
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Field
from data_pipeline.examples.targets import TargetPoints
from data_pipeline.faces.align import TEMPLATE, TEMPLATE_SIZE
from data_pipeline.records.schema import Record
from persongen_jax.losses.base import Decoded, DecodedLoss
from persongen_jax.losses.clip import cosine
from persongen_jax.models.faces.iresnet import IResNet
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.formats.recognisers import SFACE, open_recogniser, reads_boxes
from persongen_jax.weights.licences import say_terms

ENLARGED = 0.2  # a box without landmarks, on either side, as references are cropped
SMALLEST = 1e-6  # of a spread; coinciding landmarks give no scale
LEAST = 0.25  # pixels of the image per pixel of the crop; a smaller face does not count


class Identity(DecodedLoss):
    """1 - cos of the recogniser's embeddings of the decoded face and of the target's.

    Both faces are cut at the same place, by the target's landmarks moved onto ArcFace's template.
    Where landmarks are unknown, or one lies outside of the target, by the square around the face
    box. FaceNet always reads the box alone, as it was trained. Faces smaller than LEAST of the
    network's input are not compared.
    """

    name, net_key, reads_target = "identity", "loss_face_net", True
    reads_condition = True
    remedy = "compares faces by it: give a recogniser's file, or sface"

    def __init__(self, config: ConfigDict, *, abstract: bool = False):
        super().__init__(config, abstract=abstract)
        self.by_box = reads_boxes(self.net)
        self.needs = "face box" if self.by_box else "landmarks or face box"

    def network(self) -> nnx.Module:
        if self.abstract and self.net != SFACE and not Path(self.net).exists():
            return IResNet({}, dtype=jnp.float32, param_dtype=jnp.float32, rngs=UnusedRngs())
        recogniser = open_recogniser(self.net)
        if not self.abstract:
            said = f"the loss 'identity' reads faces by {self.net}"
            say_terms(said, self.net, "face", recogniser.licence)
        return recogniser.model

    def fields(self, trigger_word: str) -> tuple[Field, ...]:
        return (TargetPoints("landmarks"),)

    def comparable(self, record: Record) -> bool:
        known = None if self.by_box else record.landmarks
        return known is not None or record.face_box is not None

    def __call__(self, network: Any, decoded: Decoded) -> tuple[jax.Array, jax.Array]:
        size, batch = network.config["input_size"], decoded.batch
        smaller = decoded.images.shape[1] / decoded.size[0]
        boxes = batch["face_box"] * smaller
        if self.by_box:
            cropped = functools.partial(stretched, boxes=boxes, size=size)
            counted = large_box(boxes, decoded.images.shape[1:3], size)
        else:
            places, counted = box_places(boxes, size)
            aligned, scaled = aligned_places(batch["landmarks"] * smaller, size)
            known = batch["landmarks_mask"].all(-1)
            places = jnp.where(known[:, None, None, None], aligned, places)
            counted = jnp.where(known, scaled, counted)
            cropped = functools.partial(cut, places=places)
        ours = network(2 * cropped(decoded.images) - 1)
        theirs = jax.lax.stop_gradient(network(2 * cropped(decoded.target()) - 1))
        return 1 - cosine(ours, theirs), counted


def aligned_places(landmarks: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Where the pixels of aligned crops lie (data_pipeline/faces/align.py).

    Args:
        landmarks: [b, 5, 2] (x, y) in pixels, origin "corner". size: side of the crops.

    Returns:
        [b, size, size, 2] (x, y), origin "centre"; and whether the face is large enough [b].
    """
    template = jnp.asarray(TEMPLATE * (size / TEMPLATE_SIZE), jnp.float32)
    points = landmarks - 0.5
    there_mean, here_mean = template.mean(0), points.mean(1)
    here, there = points - here_mean[:, None], template - there_mean
    # The similarity from the crop's pixels to the image's is the inverse of the one in align.py.
    spread = (here**2).sum((1, 2))
    some = spread > SMALLEST
    a = (here * there).sum((1, 2))
    b = (here[..., 0] * there[:, 1] - here[..., 1] * there[:, 0]).sum(1)
    norm = jnp.maximum(a**2 + b**2, 1e-12) / jnp.where(some, spread, 1)
    a, b = a / norm, -b / norm
    scaled = some & (a**2 + b**2 > LEAST**2)
    steps = _pixels(size) - there_mean
    x = a[:, None, None] * steps[..., 0] - b[:, None, None] * steps[..., 1]
    y = b[:, None, None] * steps[..., 0] + a[:, None, None] * steps[..., 1]
    return jnp.stack([x, y], -1) + here_mean[:, None, None], scaled


def box_places(boxes: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """The same for the enlarged squares around boxes [b, 4]."""
    corners = boxes.reshape(-1, 2, 2)
    extent = corners[:, 1] - corners[:, 0]
    side = jnp.maximum(extent.max(-1), 1) * (1 + 2 * ENLARGED)
    middle = corners.mean(1)
    steps = (_pixels(size) + 0.5) / size - 0.5
    places = middle[:, None, None] + side[:, None, None, None] * steps - 0.5
    return places, (extent.min(-1) > 0) & (side > LEAST * size)


def large_box(boxes: jax.Array, shape: tuple[int, ...], size: int) -> jax.Array:
    """Whether crops to boxes [b, 4] in images of ``shape`` (h, w) are large enough, [b] bool."""
    low, high = _inside(boxes, shape)
    return ((high - low) > LEAST * size).all(-1)


def stretched(images: jax.Array, boxes: jax.Array, size: int) -> jax.Array:
    """Crops to boxes, [b, h, w, 3] to [b, size, size, 3] (data_pipeline/faces/box_crop.py).

    Corners are rounded down and kept inside; Pillow's bilinear filter, which averages where the
    crop is smaller than the box.

    Args:
        boxes: [b, 4] (x0, y0, x1, y1) in pixels.
    """
    low, high = _inside(boxes, images.shape[1:3])
    columns, rows = (
        _filter(low[:, axis], high[:, axis], images.shape[2 - axis], size) for axis in (0, 1)
    )
    return jnp.einsum("bih,bhwc,bjw->bijc", rows, images, columns)


def _inside(boxes, shape):
    """Corners (x, y) of boxes, whole pixels inside of the image: [b, 2] twice."""
    corners = jnp.clip(boxes.reshape(-1, 2, 2), 0, jnp.array(shape[::-1], jnp.float32))
    return jnp.floor(corners[:, 0]), jnp.floor(corners[:, 1])


def _filter(low, high, length, size):
    """[b, size, length]: which pixels from low to high [b] a pixel of the crop averages."""
    step = jnp.maximum(high - low, 1) / size
    middle = low[:, None] + (jnp.arange(size) + 0.5) * step[:, None]
    pixels = jnp.arange(length) + 0.5
    away = jnp.abs(pixels - middle[..., None]) / jnp.maximum(step, 1)[:, None, None]
    inside = (pixels > low[:, None]) & (pixels < high[:, None])
    weights = jnp.maximum(1 - away, 0) * inside[:, None]
    return weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-6)


def _pixels(size):
    """[size, size, 2] (x, y)."""
    return jnp.stack(jnp.meshgrid(jnp.arange(size), jnp.arange(size)), -1).astype(jnp.float32)


def cut(images: jax.Array, places: jax.Array) -> jax.Array:
    """Bilinear samples of [b, h, w, 3] at [b, s, s, 2] (x, y), black outside: [b, s, s, 3]."""

    def channel(image, where):
        return map_coordinates(image, [where[..., 1], where[..., 0]], order=1, mode="constant")

    return jax.vmap(jax.vmap(channel, (2, None), 2))(images, places)
