"""Which kernels of a base are held in 8 bits (models/quantised.py), and what that rules out."""

import re
from collections.abc import Collection

from flax import nnx

from persongen_jax.models.lora import Adaptable, quantised_as
from persongen_jax.models.quantised import quantise

# Never the VAE: it is small, and its errors are seen in every pixel.
QUANTISED = ("unet", "text_encoder", "text_encoder_2")

# Left whole: the ends of the UNet, which all of a picture and of its timestep pass through. They
# are 0.3 % of SDXL's UNet, and in the miniature half of the error (docs/quantization.md).
WHOLE = re.compile(r"(.*/)?(conv_in|conv_out|time_embedding|add_embedding)(/.*)?")


def _layers(module: nnx.Module) -> dict[str, Adaptable]:
    found = nnx.iter_graph(module)
    layers = {"/".join(map(str, p)): layer for p, layer in found if isinstance(layer, Adaptable)}
    return {path: layer for path, layer in layers.items() if not WHOLE.fullmatch(path)}


def base_layers(model: nnx.Module) -> set[str]:
    """Paths of the linear layers and convolutions that may be held in 8 bits.

    To be called before a method is attached: what it adds keeps its precision.
    """
    return {path for path in _layers(model) if path.split("/")[0] in QUANTISED}


def quantise_kernels(module: nnx.Module, kind: str, layers: Collection[str] | None = None) -> None:
    """Hold these layers' kernels (default: all) in 8 bits, in place; ``kind``: "int8" or "fp8"."""
    for path, layer in _layers(module).items():
        if (layers is None or path in layers) and not quantised_as(layer):
            layer.kernel.set_value(quantise(layer.kernel.get_value(), kind))


def check_not_quantised(module: nnx.Module, consequence: str) -> None:
    """ValueError that names the first layer of ``module`` that is held in 8 bits."""
    for path, layer in _layers(module).items():
        if kind := quantised_as(layer):
            raise ValueError(
                f"{consequence}: {path} and others are held in {kind}; open the base without "
                "quantize for that"
            )
