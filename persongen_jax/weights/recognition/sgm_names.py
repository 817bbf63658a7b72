"""The original SDXL code's (sgm's) names of the UNet's modules, mapped to diffusers' names.

sgm numbers all residual blocks of the down path consecutively, including samplers
(``input_blocks``), and likewise those of the up path (``output_blocks``); within a block ``0`` is
the residual block and ``1`` the attention. diffusers groups them by resolution.
"""

from collections.abc import Sequence

_OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def unet_modules(
    down_attention: Sequence[bool], up_attention: Sequence[bool], layers: Sequence[int]
) -> dict[str, str]:
    """sgm module path -> diffusers module path.

    Layers of residual blocks are listed one by one. Attentions are listed as a whole, since their
    parts have the same names on both sides.

    Args:
        down_attention: for every down block, whether it has attention.
        up_attention: for every up block, from the lowest resolution on.
        layers: residual blocks per down block; an up block has one more than its counterpart.
    """
    table = dict(_OUTSIDE)

    def resnet(original, ours):
        table.update({f"{original}.{a}": f"{ours}.{b}" for a, b in _RESNET.items()})

    n = 1  # input_blocks.0 is conv_in
    for i, attention in enumerate(down_attention):
        for j in range(layers[i]):
            resnet(f"input_blocks.{n}.0", f"down_blocks.{i}.resnets.{j}")
            if attention:
                table[f"input_blocks.{n}.1"] = f"down_blocks.{i}.attentions.{j}"
            n += 1
        if i + 1 < len(down_attention):
            table[f"input_blocks.{n}.0.op"] = f"down_blocks.{i}.downsamplers.0.conv"
            n += 1

    resnet("middle_block.0", "mid_block.resnets.0")
    table["middle_block.1"] = "mid_block.attentions.0"
    resnet("middle_block.2", "mid_block.resnets.1")

    n = 0
    for i, attention in enumerate(up_attention):
        for j in range(layers[-1 - i] + 1):
            resnet(f"output_blocks.{n}.0", f"up_blocks.{i}.resnets.{j}")
            if attention:
                table[f"output_blocks.{n}.1"] = f"up_blocks.{i}.attentions.{j}"
            n += 1
        if i + 1 < len(up_attention):
            # The upsampler takes the next free index of the block's last entry.
            place = 2 if attention else 1
            table[f"output_blocks.{n - 1}.{place}.conv"] = f"up_blocks.{i}.upsamplers.0.conv"
    return table


def rename_by_prefix(table: dict[str, str], path: str) -> str | None:
    """``path`` with its longest prefix in ``table`` replaced; None if there is none.

    Prefixes consist of whole names between dots: ``a.1`` is not a prefix of ``a.10``.
    """
    parts = path.split(".")
    for n in range(len(parts), 0, -1):
        start = table.get(".".join(parts[:n]))
        if start is not None:
            return ".".join([start, *parts[n:]])
    return None


__all__ = ["rename_by_prefix", "unet_modules"]
