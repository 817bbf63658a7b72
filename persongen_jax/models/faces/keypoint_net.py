"""KeypointNet: predicts face box, landmarks and body keypoints of one person from a small image.

In the miniature it replaces the face detector and pose estimator that real photographs need. A
plain convolutional regressor; the coordinates are fractions of the frame, so any image resized to
``image_size`` works.
"""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from ml_collections import FrozenConfigDict

from persongen_jax.models.layers import (
    Conv,
    GroupNorm,
    LayerOptions,
    Linear,
    at_least_float32,
)

LANDMARKS, KEYPOINTS = 5, 12
GROUPS = 8
DEFAULTS = {"image_size": 64, "widths": (16, 32, 64, 96), "hidden_features": 256}


class KeypointOutput(NamedTuple):
    """float32; positions are (x, y) in sides of the frame, (0, 0) its upper left corner.

    present: [b] logit of whether there is a face.
    face_box: [b, 4] (x0, y0, x1, y1).
    landmarks: [b, 5, 2] eyes, tip of the nose, corners of the mouth, left to right in the image.
    keypoints: [b, 12, 2] COCO's 5 to 16, shoulders to ankles.
    visibility: [b, 12] logits.
    """

    present: jax.Array
    face_box: jax.Array
    landmarks: jax.Array
    keypoints: jax.Array
    visibility: jax.Array


def complete_config(config: dict) -> dict:
    """``config`` with DEFAULTS filled in; ValueError if it does not describe a network."""
    unknown = sorted(set(config) - set(DEFAULTS))
    if unknown:
        raise ValueError(f"KeypointNet config: unknown keys {unknown}; known: {sorted(DEFAULTS)}")
    config = {**DEFAULTS, **config, "widths": tuple(config.get("widths", DEFAULTS["widths"]))}
    step = 2 ** len(config["widths"])
    if config["image_size"] % step or not config["widths"]:
        raise ValueError(
            f"KeypointNet config: image_size={config['image_size']} is not a multiple of "
            f"{step}, but every stage in widths halves it"
        )
    return config


class Stage(nnx.Module):
    """Two convolutions at half the side: [b, h, w, in] to [b, h / 2, w / 2, out]."""

    def __init__(self, in_features: int, features: int, **kw: Unpack[LayerOptions]):
        self.conv1 = Conv(in_features, features, 3, strides=2, padding=1, **kw)
        self.norm1 = GroupNorm(GROUPS, features, **kw)
        self.conv2 = Conv(features, features, 3, padding=1, **kw)
        self.norm2 = GroupNorm(GROUPS, features, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.silu(self.norm1(self.conv1(x)))
        return x + jax.nn.silu(self.norm2(self.conv2(x)))


class KeypointNet(nnx.Module):
    """Maps RGB images [b, s, s, 3] in [-1, 1] to :class:`KeypointOutput`.

    Args:
        config: the keys of DEFAULTS.

    Raises:
        ValueError: an unknown key, or sizes that do not describe a network.
    """

    def __init__(
        self,
        config: dict,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        config = complete_config(config)
        self.config = FrozenConfigDict(config)
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        widths = (3, *config["widths"])
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.stages = nnx.List([Stage(before, after, **kw) for before, after in pairs])
        side = config["image_size"] // 2 ** len(config["widths"])
        self.fc1 = Linear(widths[-1] * side * side, config["hidden_features"], **kw)
        self.fc2 = Linear(config["hidden_features"], 1 + 4 + 2 * LANDMARKS + 3 * KEYPOINTS, **kw)

    def __call__(self, images: jax.Array) -> KeypointOutput:
        size = self.config["image_size"]
        if images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images have shape {images.shape}, image_size={size} needs "
                f"[b, {size}, {size}, 3]: resize them to it"
            )
        x = images
        for stage in self.stages:
            x = stage(x)
        x = jax.nn.silu(self.fc1(x.reshape(len(x), -1)))
        out = at_least_float32(self.fc2(x))
        ends = (1, 5, 5 + 2 * LANDMARKS, 5 + 2 * (LANDMARKS + KEYPOINTS))
        present, box, landmarks, keypoints, visibility = jnp.split(out, ends, axis=-1)
        return KeypointOutput(
            present[:, 0],
            box + 0.5,
            landmarks.reshape(-1, LANDMARKS, 2) + 0.5,
            keypoints.reshape(-1, KEYPOINTS, 2) + 0.5,
            visibility,
        )
