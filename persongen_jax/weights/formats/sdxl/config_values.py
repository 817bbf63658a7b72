"""Checks numbers in the components' configs before building a network or reading a weight."""

import math
import os
from typing import TypeGuard

from persongen_jax.weights.errors import BadConfig

# Key -> the smallest sensible number; exclusive if it is 0.
_WHOLE = {
    "unet": {
        **dict.fromkeys(("in_channels", "out_channels", "norm_num_groups"), 1),
        **dict.fromkeys(("addition_time_embed_dim", "projection_class_embeddings_input_dim"), 1),
    },
    "vae": dict.fromkeys(("in_channels", "out_channels", "latent_channels", "norm_num_groups"), 1),
    "text": {"hidden_size": 1, "vocab_size": 1, "max_position_embeddings": 1},
}
_ABOVE_0 = {"unet": ("norm_eps",), "vae": ("scaling_factor",), "text": ("layer_norm_eps",)}
_ANY = {"unet": ("freq_shift",), "vae": ("shift_factor",), "text": ()}
_NULL_IS_NONE = ("shift_factor", "latents_mean", "latents_std")
_LISTS = ("latents_mean", "latents_std")


def check_values(name: str, config: dict, where: str | os.PathLike) -> None:
    """BadConfig for a value of the wrong type, or one that no network can compute with.

    Args:
        name: of the component. where: the config's file.
    """
    part = name if name in _WHOLE else "text"
    for key, value in config.items():
        if value is None and key in _NULL_IS_NONE:
            continue
        if key in _WHOLE[part]:
            _check(
                where,
                key,
                value,
                _is_number(value) and value == int(value) and value >= 1,
                "a whole number of at least 1",
            )
        elif key in _ABOVE_0[part]:
            _check(where, key, value, _is_number(value) and value > 0, "a number above 0")
        elif key in _ANY[part]:
            _check(where, key, value, _is_number(value), "a number")
        elif part == "vae" and key in _LISTS:
            good = isinstance(value, (list, tuple)) and all(map(_is_number, value))
            good = good and (key == "latents_mean" or all(x > 0 for x in value))
            _check(where, key, value, good, "a list of numbers, one per channel")
        elif key == "sample_size" and part == "unet":
            sides = value if isinstance(value, (list, tuple)) and len(value) == 2 else [value]
            good = value is None or all(_is_number(x) and x >= 1 and x == int(x) for x in sides)
            _check(where, key, value, good, "a whole number, two of them, or null")
        elif key == "transformer_layers_per_block" and part == "unet":
            listed = value if isinstance(value, (list, tuple)) else [value]
            good = all(_is_number(x) and x == int(x) for x in listed)
            _check(where, key, value, good, "whole numbers; other UNets (SSD-1B's) are not read")


def check_time_ids(unet: dict, text_encoder_2: dict, where: str | os.PathLike) -> None:
    """BadConfig unless the UNet reads the pooled prompt and six numbers of this size each."""
    size, read = (
        unet.get("addition_time_embed_dim"),
        unet.get("projection_class_embeddings_input_dim"),
    )
    pooled = text_encoder_2.get("projection_dim")
    if _is_number(size) and _is_number(read) and _is_number(pooled) and 6 * size + pooled != read:
        raise BadConfig(
            f"{where}: projection_class_embeddings_input_dim is {read}, and not the second text "
            f"encoder's projection_dim {pooled} + 6 x addition_time_embed_dim {size}. Use the "
            "config that belongs to the weights."
        )


def _check(where, key, value, good: bool, wanted: str):
    if not good:
        quoted = "; remove the quotation marks" if isinstance(value, str) else ""
        raise BadConfig(f"{where}: {key} is {value!r}, and must be {wanted}{quoted}.")


def _is_number(value) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


__all__ = ["check_time_ids", "check_values"]
