"""What PuLID's EVA-CLIP sees: a grey face on white, resized as the released code resizes it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
CUBIC = -0.75  # the parameter of torch's bicubic interpolation
# In the frame of FFHQ's alignment, in sides: around face and hair, without most of neck and ears.
CENTRE, SEMI_AXES = (0.5, 0.5), (0.32, 0.42)


def face_ellipse(size: int) -> np.ndarray:
    """Where the face is in an aligned crop, if nothing else says so: [size, size] bool.

    Eyes and mouth lie at the same places in all aligned crops, so that one ellipse suits all.
    """
    places = (np.arange(size) + 0.5) / size
    x, y = ((places - c) / a for c, a in zip(CENTRE, SEMI_AXES, strict=True))
    return x[None] ** 2 + y[:, None] ** 2 <= 1


def grey_on_white(images: jax.Array, kept: jax.Array) -> jax.Array:
    """Images [b, h, w, 3] in 0..1 to grey where ``kept`` [b, h, w], white elsewhere; the same."""
    grey = (images * LUMA).sum(-1)
    return jnp.where(kept, grey, 1.0)[..., None].repeat(3, -1)


def resize_bicubic(images: jax.Array, size: int) -> jax.Array:
    """[b, n, n, c] to [b, size, size, c] without antialiasing, edges repeated.

    As torch's ``interpolate(mode="bicubic", align_corners=False)``: four pixels of each axis count
    however small the result is.
    """
    weights = cubic_weights(images.shape[1], size)
    return jnp.einsum("ih,bhwc,jw->bijc", weights, images, weights)


@functools.cache
def cubic_weights(length: int, size: int) -> np.ndarray:
    """[size, length] float32: how much each pixel of an axis counts in each of the result."""
    places = (np.arange(size) + 0.5) * length / size - 0.5
    first = np.floor(places).astype(int)
    out = np.zeros((size, length))
    for step in (-1, 0, 1, 2):
        away = np.abs(places - first - step)
        near = ((CUBIC + 2) * away - (CUBIC + 3)) * away**2 + 1
        far = (((away - 5) * away + 8) * away - 4) * CUBIC
        pixel = np.clip(first + step, 0, length - 1)
        np.add.at(out, (np.arange(size), pixel), np.where(away <= 1, near, far))
    return out.astype(np.float32)
