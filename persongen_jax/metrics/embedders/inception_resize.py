"""How FID's tools bring an image to the 299 pixels of Inception; their figures differ by it.

Parmar et al., arXiv 2104.11222, section 3, compare them.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from persongen_jax.models.judges.inception import SIZE


def clean(image: np.ndarray) -> np.ndarray:
    """clean-fid's "clean": Pillow's bicubic per channel, with antialiasing, rounded nowhere."""
    channels = [_resize_channel(image[..., i]) for i in range(3)]
    return (np.stack(channels, axis=-1).clip(0, 255) - 128) / 128


def _resize_channel(channel):
    values = Image.fromarray(channel.astype(np.float32))
    return np.asarray(values.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def pytorch_fid(image: np.ndarray) -> np.ndarray:
    """pytorch-fid's: torch's bilinear between cells' centres, without antialiasing; 2 x - 1."""
    return 2 * _bilinear(image.astype(np.float32) / 255, 0.5) - 1


def torch_fidelity(image: np.ndarray) -> np.ndarray:
    """torch-fidelity's: TensorFlow 1's bilinear between cells' corners, without antialiasing."""
    return (_bilinear(image.astype(np.float32), 0.0) - 128) / 128


def _bilinear(image, centre):
    """[h, w, 3] to [299, 299, 3]; ``centre``: the position of the first cell's value."""
    for axis in (0, 1):
        old = image.shape[axis]
        places = (np.arange(SIZE, dtype=np.float32) + np.float32(centre)) * np.float32(old / SIZE)
        places = np.maximum(places - np.float32(centre), 0)
        low = np.minimum(places.astype(int), old - 1)
        share = (places - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        first = image.take(low, axis)
        image = first + (image.take(np.minimum(low + 1, old - 1), axis) - first) * share
    return image


VARIANTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "clean": clean,
    "pytorch-fid": pytorch_fid,
    "torch-fidelity": torch_fidelity,
}


def open_variant(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 RGB [h, w, 3] to float32 [299, 299, 3] in about [-1, 1], as this tool does it.

    Raises:
        ValueError: no such tool.
    """
    if name not in VARIANTS:
        raise ValueError(
            f"config.fid_variant={name!r}: there are {', '.join(VARIANTS)}, which resize "
            "differently and give different figures"
        )
    return VARIANTS[name]
