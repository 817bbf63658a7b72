"""A tiny EVA02-CLIP: seeded weights and inputs, made by numpy alone, and its files' layouts.

tests/goldens/eva_clip/record.py feeds them to timm and OpenCLIP; the tests read what these gave.
The authors' names are written down from the keys of their files.
"""

import json
import re
from pathlib import Path

import numpy as np

from tests.helpers.encoders.judge_files import seeded

FOLDER = Path(__file__).parents[2] / "goldens" / "eva_clip"
FILE, ORIGINAL = FOLDER / "eva_clip.npz", FOLDER / "original.npz"
# timm's and OpenCLIP's names of the sizes. The MLP has 341 channels.
TRUNK = {"img_size": 24, "patch_size": 4, "embed_dim": 128, "depth": 3, "num_heads": 2}
WORDS = 1000  # no fewer than the tiny tokenizer's
TEXT = {"embed_dim": 40, "width": 128, "heads": 2, "layers": 2, "vocab_size": WORDS}
# The authors' names of what timm calls otherwise.
NATIVE = {
    r"^visual\.trunk\.": "visual.",
    r"\.attn\.([qv])_proj\.bias$": r".attn.\1_bias",
    r"\.attn\.norm\.": ".attn.inner_attn_ln.",
    r"\.mlp\.norm\.": ".mlp.ffn_ln.",
    r"\.mlp\.fc1_g\.": ".mlp.w1.",
    r"\.mlp\.fc1_x\.": ".mlp.w2.",
    r"\.mlp\.fc2\.": ".mlp.w3.",
}


def golden() -> dict[str, np.ndarray]:
    """What timm and OpenCLIP gave, by name."""
    with np.load(FILE) as arrays:
        return {key: arrays[key] for key in arrays.files if not key.startswith("shapes ")}


def shapes_of(size: str) -> dict[str, tuple[int, ...]]:
    """Key to shape of OpenCLIP's state dict, "tiny" or "published"."""
    with np.load(FILE) as arrays:
        found = json.loads(str(arrays[f"shapes {size}"]))
    return {key: tuple(shape) for key, shape in found.items()}


def tower_weights(shapes: dict) -> dict[str, np.ndarray]:
    """Seeded weights by key; the tables of positions are as large as what they are added to."""
    tables = ("pos_embed", "cls_token", "positional_embedding", "token_embedding.weight")
    weights = {}
    for key, value in seeded({key: tuple(shape) for key, shape in shapes.items()}).items():
        weights[key] = value / value.std() if key.endswith(tables) else np.asarray(value)
    return weights


def pixels() -> np.ndarray:
    """Float32 [2, 24, 24, 3], of about the size of normalised pictures."""
    return np.random.default_rng(1).standard_normal((2, 24, 24, 3)).astype(np.float32)


def token_ids() -> np.ndarray:
    """int64 [2, 77]: two texts, each ended by the highest id and padded with 0."""
    ids = np.zeros((2, 77), np.int64)
    for row, length in enumerate((9, 76)):
        ids[row, :length] = np.random.default_rng(row).integers(1, WORDS - 1, length)
        ids[row, length] = WORDS - 1
    return ids


def native_names(tensors: dict) -> dict:
    """timm's names in OpenCLIP's file to the authors'."""
    named = {}
    for key, value in tensors.items():
        for pattern, new in NATIVE.items() if key.startswith("visual.") else ():
            key = re.sub(pattern, new, key)
        named[key] = value
    return named


def original() -> tuple[dict, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(sizes, weights by the authors' keys after "visual.", inputs and outputs) of original.npz."""
    with np.load(ORIGINAL) as arrays:
        found = {key: arrays[key] for key in arrays.files}
    sizes = json.loads(str(found.pop("config")))
    weights = {}
    for key in [key for key in found if key.startswith("w/")]:
        upper = found.pop(key).astype(np.uint32) << 16
        weights[key.removeprefix("w/")] = upper.view(np.float32)
    return sizes, weights, found
