"""Images and masks given as arrays: the accepted shapes, dtypes and ranges."""

from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.pictures.formats import ImageFault, check_size

CHANNELS = (1, 3, 4)
BEYOND = 1e-2  # tolerance for floats after resizing or half precision
LABELS = 8  # values up to this are not greys of a mask but 0 and 1, or labels
ONES = "of nothing but 0 and 1: give 0 and 255, or float in 0..1"


def image_from_array(values: Any) -> np.ndarray | Image.Image:
    """uint8 RGB [h, w, 3] unchanged; any other array as a PIL image of mode L, RGB or RGBA.

    Args:
        values: [h, w] or [h, w, 1] grey, [h, w, 3] RGB or [h, w, 4] RGBA; uint8, or float in 0..1.

    Raises:
        ImageFault: anything else, and uint8 of 0 and 1, which would be black.
    """
    values = _array(values)
    if values.dtype == np.uint8:
        if values.max() == 1:
            raise _wrong(values, ONES)
        pixels = values
    elif is_float(values):
        pixels = bytes_of_floats(values)
    else:
        raise _wrong(values, "give uint8 of 0 to 255, or float in 0..1")
    if pixels.shape[2:] == (3,):
        return pixels
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def mask_from_array(values: Any) -> np.ndarray | Image.Image:
    """[h, w] float32 in 0..1 from an array with one channel; several become a PIL image.

    Args:
        values: bool, or as for an image.

    Raises:
        ImageFault: anything else, and uint8 of 0 and 1, which would have almost no effect.
    """
    values = _array(values)
    if values.shape[2:] in ((3,), (4,)):
        values = values.astype(np.uint8) * np.uint8(255) if values.dtype == bool else values
        colours = image_from_array(values)
        return Image.fromarray(colours) if isinstance(colours, np.ndarray) else colours
    values = values.reshape(values.shape[:2])
    if values.dtype == np.uint8:
        check_mask_range(int(values.max()))
        return values.astype(np.float32) / 255
    if values.dtype != bool:
        if not is_float(values):
            raise _wrong(values, "give bool, float in 0..1, or uint8")
        values = in_range(values)
    return values.astype(np.float32)


def check_mask_range(most: int) -> None:
    """ImageFault for a mask of 0 and 1, or of labels, whose largest value of 255 is ``most``."""
    if 0 < most < LABELS:
        raise ImageFault(
            f"its whitest value is {most} of 255, so it would have almost no effect: give 0 and "
            "255 (an array may be bool)"
        )


def is_float(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" or values.dtype.name == "bfloat16"


def bytes_of_floats(values: np.ndarray, what: str = "") -> np.ndarray:
    """Floats in 0..1 to uint8; ``what`` names them in messages, if they are not an array."""
    scaled = in_range(values, what).astype(np.float32) * np.float32(255)
    return np.rint(scaled, out=scaled).astype(np.uint8)


def in_range(values: np.ndarray, what: str = "") -> np.ndarray:
    """Floats clipped to 0..1 if a resize went slightly beyond; ImageFault for others."""
    low, high = float(values.min()), float(values.max())  # NaN if one value is
    if low >= 0 and high <= 1:
        return values
    if low >= -BEYOND and high <= 1 + BEYOND:
        return np.clip(values, 0, 1)
    if np.isnan(low) or np.isnan(high):
        raise _wrong(values, "holds NaN: floats must be in 0..1: fix what made them", what)
    hint = "divide by 255, or give uint8" if high > 2 else "scale them, or give uint8"
    said = f"with values {low:.6g} to {high:.6g}: floats must be in 0..1: {hint}"
    raise _wrong(values, said, what)


def _array(given) -> np.ndarray:
    """The numpy array; ImageFault for what numpy cannot read, and for other shapes."""
    try:
        values = np.asarray(given)
    except Exception as error:  # torch tensors on other devices, with gradients, or bfloat16
        reason = str(error).partition("\n")[0]
        raise ImageFault(
            f"a {type(given).__name__} that numpy cannot read ({reason}): give a numpy array; of a "
            "torch tensor .detach().cpu().float().numpy()"
        ) from error
    _check_shape(values)
    check_size(values.shape[1], values.shape[0])
    return values


def _check_shape(values: np.ndarray) -> None:
    good = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in CHANNELS)
    if good and values.size:
        return
    hint = ""
    if values.ndim == 3 and values.shape[0] in CHANNELS:
        hint = " (channels come last: transpose(1, 2, 0))"
    if values.ndim == 4:
        hint = " (one image at a time, without the batch's axis)"
    raise _wrong(values, f"give [h, w], [h, w, 1], [h, w, 3] or [h, w, 4]{hint}")


def _wrong(values: np.ndarray, said: str, what: str = "") -> ImageFault:
    return ImageFault(f"{what or f'an array {values.dtype} {values.shape}'}, {said}")
