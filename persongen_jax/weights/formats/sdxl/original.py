"""Splits single files of a base model into diffusers' components under diffusers' names.

layout.py finds each part in the file; this module renames its keys.
"""

from collections.abc import Mapping

from persongen_jax.weights.errors import BadConfig, KeyMismatch
from persongen_jax.weights.files.source import RenamedSource, Renaming, TensorSource
from persongen_jax.weights.keys import pointwise
from persongen_jax.weights.recognition.layout import Layout, Place, read_layout
from persongen_jax.weights.recognition.open_clip_names import open_clip_entries
from persongen_jax.weights.recognition.sgm_names import rename_by_prefix, unet_modules

_DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}


def split_checkpoint(
    source: TensorSource,
    unet_config: Mapping,
    vae_config: Mapping,
    layout: Layout | None = None,
    parts: tuple[str, ...] | None = None,
) -> dict[str, RenamedSource]:
    """One source per available component, named as in diffusers and ``keys.py``.

    All read through ``source``, which the caller closes after using them.

    Args:
        source: the opened file.
        unet_config: diffusers' UNet config: block types and ``layers_per_block`` are used.
        vae_config: diffusers' VAE config: block types are used.
        layout: of ``source``, if already known.
        parts: the requested components; None: all. Others are not examined.

    Returns:
        By "unet", "vae", "text_encoder", "text_encoder_2". ``ignored`` of each lists what was left
        out on purpose.

    Raises:
        KeyMismatch: a key that no rule matches.
        BadConfig: a config with blocks that SDXL does not have.
    """
    layout = read_layout(source) if layout is None else layout
    configs = {"unet": unet_config, "vae": vae_config}
    renamings = {}
    unknown = {key: source.info(key)[1] for key in layout.others}
    for name, place in layout.parts.items():
        if parts is not None and name not in parts:
            continue
        renamings[name] = renaming = Renaming(source)
        for key, entries in _entries(source, place, configs):
            if not entries:
                unknown[key] = source.info(key)[1]
            for new, transform in entries:
                renaming.add(new, key, transform)
        for key in (*layout.harmless, *layout.markers):
            renaming.ignore(key)
    if unknown:
        raise KeyMismatch(
            source.describe(),
            unexpected=unknown,
            remedy="Check that it is an SDXL checkpoint and that the configs belong to it.",
        )
    return {name: own.source(part=name, owns_base=False) for name, own in renamings.items()}


def _entries(source, place: Place, configs):
    """For every key: (key, [(name, transform)] that it becomes; empty if no rule matches it)."""
    modules = {}
    if place.dialect == "sgm":
        make = {"unet": _unet_modules, "vae": _vae_modules}[place.part]
        modules = make(configs[place.part])
    for key, inner in zip(place.keys, place.inner(), strict=True):
        if place.dialect == "open_clip":
            yield key, open_clip_entries(inner, source.info(key)[1])
        elif place.dialect == "sgm":
            path, _, leaf = inner.rpartition(".")
            renamed = rename_by_prefix(modules, path)
            linear = place.part == "vae" and ".mid.attn_1." in inner
            transform = pointwise(source, key) if linear else None
            yield key, [(f"{renamed}.{leaf}", transform)] if renamed else []
        else:
            yield key, [(inner.removeprefix("text_model."), None)]


def _unet_modules(config):
    down = _attention("UNet", _DOWN, config, "down_block_types")
    up = _attention("UNet", _UP, config, "up_block_types")
    layers = config.get("layers_per_block", 2)
    layers = [layers] * len(down) if isinstance(layers, int) else list(layers)
    if len(up) != len(down) or len(layers) != len(down):
        raise BadConfig(
            f"UNet config: {len(down)} down blocks, {len(up)} up blocks and layers_per_block "
            f"{layers} do not fit together. Use the checkpoint's own config."
        )
    return unet_modules(down, up, layers)


def _attention(model, known, config, name):
    types = config.get(name)
    if not types or any(kind not in known for kind in types):
        raise BadConfig(
            f"{model} config: {name} {types!r} is not what SDXL has; known are {list(known)}."
        )
    return [known[kind] for kind in types]


def _vae_modules(config):
    """Like ``unet_modules``. The VAE's blocks hardly differ; its up blocks count backwards."""
    number = len(_attention("VAE", {"DownEncoderBlock2D": False}, config, "down_block_types"))
    if len(_attention("VAE", {"UpDecoderBlock2D": False}, config, "up_block_types")) != number:
        raise BadConfig("VAE config: down_block_types and up_block_types differ in number.")
    layers = config.get("layers_per_block", 1)

    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}

    def resnet(original, ours):
        names = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
        names["nin_shortcut"] = "conv_shortcut"
        table.update({f"{original}.{a}": f"{ours}.{b}" for a, b in names.items()})

    for coder in ("encoder", "decoder"):
        table[f"{coder}.conv_in"] = f"{coder}.conv_in"
        table[f"{coder}.norm_out"] = f"{coder}.conv_norm_out"
        table[f"{coder}.conv_out"] = f"{coder}.conv_out"
        resnet(f"{coder}.mid.block_1", f"{coder}.mid_block.resnets.0")
        resnet(f"{coder}.mid.block_2", f"{coder}.mid_block.resnets.1")
        original, ours = f"{coder}.mid.attn_1", f"{coder}.mid_block.attentions.0"
        table[f"{original}.norm"] = f"{ours}.group_norm"
        table[f"{original}.proj_out"] = f"{ours}.to_out.0"
        table.update({f"{original}.{x}": f"{ours}.to_{x}" for x in "qkv"})
    for i in range(number):
        ours = f"encoder.down_blocks.{i}"
        for j in range(layers):
            resnet(f"encoder.down.{i}.block.{j}", f"{ours}.resnets.{j}")
        if i + 1 < number:
            table[f"encoder.down.{i}.downsample.conv"] = f"{ours}.downsamplers.0.conv"
        original, ours = f"decoder.up.{number - 1 - i}", f"decoder.up_blocks.{i}"
        for j in range(layers + 1):
            resnet(f"{original}.block.{j}", f"{ours}.resnets.{j}")
        if i + 1 < number:
            table[f"{original}.upsample.conv"] = f"{ours}.upsamplers.0.conv"
    return table


__all__ = ["split_checkpoint"]
