"""Reads an IP-Adapter's training state under the published files' names.

The trainer's modules are ``unet``, ``image_proj_model`` and ``adapter_modules``, the last a list of
the UNet's attention processors. Both names of a processor refer to one tensor, of which a
safetensors file keeps only one name, depending on how it was saved. The numbers are those of the
published files, and a processor under the UNet's name gets its number from its layer's position.
"""

import re
import warnings

import numpy as np

from persongen_jax.weights.errors import WeightsError
from persongen_jax.weights.files.source import Renaming, TensorSource

# Including the prefixes of torch's wrappers for several devices and for compiling.
_AROUND = r"(?:module\.|_orig_mod\.)*"
_PROJECTION = re.compile(rf"{_AROUND}image_proj_model\.{_AROUND}(.+)")
_NUMBERED = re.compile(rf"{_AROUND}adapter_modules\.{_AROUND}(\d+)\.{_AROUND}(.+)")
_UNET = re.compile(rf"{_AROUND}unet\.{_AROUND}(.+)")
_LAYER = re.compile(r"(?P<block>.+\.transformer_blocks\.\d+)\.attn(?P<which>[12])\.(?P<rest>.+)")
# The order in which diffusers registers attention processors.
_STAGES = ("down_blocks", "up_blocks", "mid_block")


def is_training_state(source: TensorSource) -> bool:
    """Whether the keys are those of IP-Adapter's trainer."""
    return any(_PROJECTION.match(key) or _NUMBERED.match(key) for key in source.keys())


def published_names(source: TensorSource) -> TensorSource:
    """``source`` with the published files' names; itself if it is not a training state.

    The UNet's own weights, which this training does not change, are ignored with a warning.

    Raises:
        WeightsError: the two names of a processor hold different tensors.
    """
    if not is_training_state(source):
        return source
    places, renaming, numbered = _places(source), Renaming(source), {}
    for key in source.keys():
        if match := _PROJECTION.fullmatch(key):
            renaming.add(f"image_proj.{match[1]}", key)
        elif match := _NUMBERED.fullmatch(key):
            name = f"ip_adapter.{match[1]}.{match[2]}"
            renaming.add(name, key)
            numbered[name] = key
    rest = 0
    for key in source.keys():
        match = _UNET.fullmatch(key)
        if not match:
            if not _PROJECTION.fullmatch(key) and not _NUMBERED.fullmatch(key):
                renaming.add(key, key)  # unknown: its reader will report it
            continue
        layer = _LAYER.fullmatch(match[1])
        if layer is None or not layer["rest"].startswith("processor."):
            renaming.ignore(key)
            rest += 1
            continue
        number = 2 * places[layer["block"]] + int(layer["which"]) - 1
        name = f"ip_adapter.{number}.{layer['rest'].removeprefix('processor.')}"
        if name not in numbered:
            renaming.add(name, key)
            continue
        if not np.array_equal(source.read(key), source.read(numbered[name])):
            raise WeightsError(
                f"{source.describe()}: {key!r} and {numbered[name]!r} are one tensor in training, "
                "and differ here. Save the state again."
            )
        renaming.ignore(key)
    if rest:
        warnings.warn(
            f"{source.describe()}: is a training state; {rest} tensors of the UNet that it was "
            "trained on are not used, the base's own are",
            stacklevel=3,
        )
    return renaming.source()


def _places(source) -> dict[str, int]:
    """The number of each transformer block of the UNet, in diffusers' order."""
    blocks = set()
    for key in source.keys():
        match = _UNET.fullmatch(key)
        if match and (layer := _LAYER.fullmatch(match[1])):
            blocks.add(layer["block"])

    def order(block):
        stage = next((i for i, name in enumerate(_STAGES) if block.startswith(name)), len(_STAGES))
        return stage, [int(n) for n in re.findall(r"\d+", block)]

    return {block: i for i, block in enumerate(sorted(blocks, key=order))}


__all__ = ["is_training_state", "published_names"]
