"""Pictures and masks that come as arrays: which shapes, dtypes and ranges are taken."""

import numpy as np
from PIL import Image

from data_pipeline.pictures.formats import PictureFault

CHANNELS = (1, 3, 4)


def image_from_array(values) -> np.ndarray | Image.Image:
    """uint8 RGB [h, w, 3] as it is; any other array as a PIL image, of mode L, RGB or RGBA.

    Args:
        values: [h, w] or [h, w, 1] grey, [h, w, 3] RGB or [h, w, 4] RGBA; uint8, or float in 0..1.

    Raises:
        PictureFault: anything else.
    """
    values = np.asarray(values)
    _check_shape(values)
    if values.dtype == np.uint8:
        pixels = values
    elif is_float(values):
        pixels = bytes_of_floats(values)
    else:
        raise _wrong(values, "give uint8, or float in 0..1")
    if pixels.shape[2:] == (3,):
        return pixels
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def mask_from_array(values) -> np.ndarray | Image.Image:
    """[h, w] float32 in 0..1 of an array of one channel; one of several as a PIL image.

    Args:
        values: [h, w] or [h, w, 1] bool, float in 0..1, or uint8 0..255; colours as an image's.

    Raises:
        PictureFault: anything else, and uint8 of 0 and 1, which would be next to nothing.
    """
    values = np.asarray(values)
    _check_shape(values)
    if values.shape[2:] in ((3,), (4,)):
        colours = image_from_array(values)
        return Image.fromarray(colours) if isinstance(colours, np.ndarray) else colours
    values = values.reshape(values.shape[:2])
    if values.dtype == np.uint8:
        if values.max() == 1:
            raise _wrong(values, "of nothing but 0 and 1: give bool, or 0 and 255")
        return values.astype(np.float32) / 255
    if values.dtype != bool:
        if not is_float(values):
            raise _wrong(values, "give bool, float in 0..1, or uint8")
        check_range(values)
    return values.astype(np.float32)


def is_float(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" or values.dtype.name == "bfloat16"


def bytes_of_floats(values: np.ndarray) -> np.ndarray:
    """Floats in 0..1 to uint8."""
    check_range(values)
    scaled = values.astype(np.float32) * np.float32(255)
    return np.rint(scaled, out=scaled).astype(np.uint8)


def check_range(values: np.ndarray) -> None:
    """PictureFault for floats that are not all in 0..1."""
    low, high = float(values.min()), float(values.max())  # NaN if one is
    if low >= 0 and high <= 1:
        return
    if np.isnan(low) or np.isnan(high):
        raise _wrong(values, "holds NaN: floats have to lie in 0..1")
    hint = "divide by 255, or give uint8" if high > 2 else "bring them there, or give uint8"
    raise _wrong(values, f"with values {low:g} to {high:g}: floats have to lie in 0..1: {hint}")


def _check_shape(values: np.ndarray) -> None:
    good = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in CHANNELS)
    if good and values.size:
        return
    hint = ""
    if values.ndim == 3 and values.shape[0] in CHANNELS:
        hint = " (channels come last: transpose(1, 2, 0))"
    if values.ndim == 4:
        hint = " (one picture at a time, without the batch's axis)"
    raise _wrong(values, f"give [h, w], [h, w, 1], [h, w, 3] or [h, w, 4]{hint}")


def _wrong(values: np.ndarray, said: str) -> PictureFault:
    return PictureFault(f"an array {values.dtype} {values.shape}, {said}")
