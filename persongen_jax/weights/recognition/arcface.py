"""An ArcFace IResNet's sizes, by the keys and shapes of arcface_torch."""

import math

from persongen_jax.models.faces.iresnet import complete_config, final_side
from persongen_jax.weights.errors import BadConfig, KeyMismatch
from persongen_jax.weights.files.source import TensorSource


def infer_config(source: TensorSource, input_size: int | None = None) -> dict:
    """An IResNet's config from arcface_torch's keys and shapes.

    Raises:
        KeyMismatch: the keys are not an IResNet's.
        BadConfig: fc does not fit square crops, or not crops of ``input_size``.
    """
    keys = set(source.keys())

    def shape(key, dims):
        found = source.info(key)[1] if key in keys else ()
        if len(found) != dims or 0 in found:
            raise KeyMismatch(
                source.describe(),
                missing=[key],
                remedy="It is not an ArcFace IResNet, whose keys are arcface_torch's.",
            )
        return found

    layers, widths = [], []
    shape("layer1.0.conv1.weight", 4)
    while f"layer{len(layers) + 1}.0.conv1.weight" in keys:
        stage = f"layer{len(layers) + 1}"
        depth = 1
        while f"{stage}.{depth}.conv1.weight" in keys:
            depth += 1
        layers.append(depth)
        widths.append(shape(f"{stage}.0.conv1.weight", 4)[0])
    in_channels = shape("conv1.weight", 4)[1]
    embedding_dim, columns = shape("fc.weight", 2)
    side = math.isqrt(columns // widths[-1])
    config = {
        "layers": tuple(layers),
        "widths": tuple(widths),
        "input_size": side * 2 ** len(layers) if input_size is None else input_size,
        "embedding_dim": embedding_dim,
        "in_channels": in_channels,
        "folded": "conv1.bias" in keys,
    }
    if side**2 * widths[-1] != columns or final_side(config) != side:
        raise BadConfig(
            f"{source.describe()}: fc has {columns} inputs, {widths[-1]} channels of {side} x "
            f"{side} positions, which does not fit crops of {config['input_size']} pixels. Give "
            "the input_size that it was trained with."
        )
    return complete_config(config)
