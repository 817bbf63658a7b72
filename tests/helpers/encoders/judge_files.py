"""Seeded weights and pictures for the judging networks, made by numpy alone.

tests/goldens/judges/record.py feeds them to the public tools; the tests read what these gave.
"""

import json
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[2] / "goldens" / "judges"
GAIN = 1.3  # of kernels
FILE = FOLDER / "judges.npz"


def golden() -> dict[str, np.ndarray]:
    """What the public tools gave, by name."""
    with np.load(FILE) as arrays:
        return {key: arrays[key] for key in arrays.files if not key.startswith("shapes ")}


def shapes_of(net: str) -> dict[str, tuple[int, ...]]:
    """Key to shape of a public network's state dict, such as "inception 2"."""
    with np.load(FILE) as arrays:
        return {
            key: tuple(shape) for key, shape in json.loads(str(arrays[f"shapes {net}"])).items()
        }


def seeded(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights by key: of a size that keeps activations near 1; running statistics are not 0 and 1.

    A key's values depend on the key alone.
    """
    return {key: _values(key, tuple(shape)) for key, shape in shapes.items()}


def _values(key, shape):
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_var"):
        return rng.uniform(0.5, 2, shape).astype(np.float32)
    if key.startswith("lin") and len(shape) == 4:  # LPIPS' heads are positive
        return rng.uniform(0, 1, shape).astype(np.float32)
    noise = rng.standard_normal(shape)
    if len(shape) > 1:
        # Kernels whose sum is 0 keep what differs between pictures; others end in one constant.
        noise -= noise.mean(tuple(range(1, len(shape))), keepdims=True) * (shape[1] > 1)
        return (GAIN * noise * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
    mean = 1.0 if key.endswith("weight") else 0.0
    scale = 0.3 if key.endswith("running_mean") else 0.1
    return (mean + scale * noise).astype(np.float32)


def patterns(count: int, height: int, width: int, seed: int) -> np.ndarray:
    """uint8 [count, height, width, 3]: large patches of colour and some noise."""
    rng = np.random.default_rng(seed)
    patches = rng.uniform(0, 255, (count, 5, 5, 3))
    rows, columns = (np.arange(side) * 5 // side for side in (height, width))
    noise = rng.normal(0, 20, (count, height, width, 3))
    return (patches[:, rows][:, :, columns] + noise).clip(0, 255).astype(np.uint8)


def clouds(count: int, dims: int, seed: int) -> np.ndarray:
    """Features float32 [count, dims] of three clusters, whose channels go together."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).standard_normal((dims, dims)) / np.sqrt(dims)
    centres = np.random.default_rng(1).standard_normal((3, dims))
    rows = centres[rng.integers(0, 3, count)] + rng.standard_normal((count, dims)) @ mixing
    return (rows + 0.05 * seed).astype(np.float32)


def lpips_halves(whole: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """A whole LPIPS state as torchvision's file of the backbone, and lpips' file of heads."""
    backbone = {
        "features." + key.split(".", 2)[2]: value
        for key, value in whole.items()
        if key.startswith("net.slice")
    }
    backbone["classifier.6.bias"] = np.zeros(1000, np.float32)
    heads = {k: v for k, v in whole.items() if k.startswith("lin") and not k.startswith("lins")}
    return {"backbone": backbone, "heads": heads}
