"""IP-Adapter files with random weights, and the public PyTorch classes' keys and shapes."""

import re

import torch
from diffusers.models.embeddings import (
    ImageProjection,
    IPAdapterFaceIDImageProjection,
    IPAdapterFaceIDPlusImageProjection,
    IPAdapterPlusImageProjection,
)
from safetensors.torch import save_file

from tests.helpers.twins import randomise

# diffusers' names to the published files', pattern by pattern.
_RENAMED = (
    (r"^image_embeds\.", "proj."),
    (r"^(ff|proj)\.net\.0\.proj\.", "proj.0."),
    (r"^(ff|proj)\.net\.2\.", "proj.2."),
    (r"\.ln0\.", ".0.norm1."),
    (r"\.ln1\.", ".0.norm2."),
    (r"\.attn\.to_out\.0\.", ".0.to_out."),
    (r"\.attn\.", ".0."),
    (r"\.ff\.0\.", ".1.0."),
    (r"\.ff\.1\.net\.0\.proj\.", ".1.1."),
    (r"\.ff\.1\.net\.2\.", ".1.3."),
)


FACES = ("faceid", "faceid-plus")  # the variants that read a recogniser's embeddings


def projection(kind: str, in_features: int, features: int, seed: int = 0, patches: int = 64):
    """diffusers' projection of a variant, but small; deterministic for a seed.

    ``patches``: for FaceID Plus, the width of a patch.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "base":
            module = ImageProjection(in_features, features, num_image_text_embeds=4)
        elif kind == "faceid":
            module = IPAdapterFaceIDImageProjection(in_features, features, mult=2, num_tokens=4)
        elif kind == "faceid-plus":
            sizes = {"id_embeddings_dim": in_features, "hidden_dims": patches, "heads": 2}
            module = IPAdapterFaceIDPlusImageProjection(features, features, depth=4, **sizes)
        else:
            module = IPAdapterPlusImageProjection(
                in_features, features, hidden_dims=128, heads=2, num_queries=6
            )
    return randomise(module, seed)


def file_tensors(module) -> dict[str, torch.Tensor]:
    """The projection's tensors under the names of the published files."""
    found = {}
    for key, value in module.state_dict().items():
        for pattern, name in _RENAMED:
            key = re.sub(pattern, name, key)
        plus = isinstance(module, IPAdapterFaceIDPlusImageProjection)
        inside = plus and not key.startswith(("proj.", "norm."))
        found[f"perceiver_resampler.{key}" if inside else key] = value
    for key in [key for key in found if key.endswith(".to_k.weight")]:
        both = [found.pop(key), found.pop(key.replace("to_k", "to_v"))]
        found[key.replace("to_k", "to_kv")] = torch.cat(both)
    return found


def adapter_tensors(unet, *, rank: int = 0, seed: int = 1) -> dict[str, torch.Tensor]:
    """Keys, values and optionally LoRA of every attention layer, numbered as in diffusers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(out, inner, scale=1.0):
        return scale * torch.randn(out, inner, generator=generator) / inner**0.5

    found = {}
    for i, name in enumerate(unet.attn_processors):
        layer = unet.get_submodule(name.removesuffix(".processor"))
        if rank:
            for short in ("to_q", "to_k", "to_v", "to_out"):
                linear = layer.to_out[0] if short == "to_out" else getattr(layer, short)
                out, inner = linear.weight.shape
                found[f"{i}.{short}_lora.down.weight"] = draw(rank, inner, 0.5)
                found[f"{i}.{short}_lora.up.weight"] = draw(out, rank, 0.5)
        if name.endswith("attn2.processor"):
            for short in ("to_k", "to_v"):
                out, inner = getattr(layer, short).weight.shape
                found[f"{i}.{short}_ip.weight"] = draw(out, inner)
    return found


def write_ip_adapter(path, unet, kind: str, in_features: int, *, rank: int = 0):
    """The file, ``.bin`` or ``.safetensors``, for diffusers' ``unet``; returns its tensors."""
    module = projection(kind, in_features, unet.config.cross_attention_dim)
    content = {
        "image_proj": file_tensors(module),
        "ip_adapter": adapter_tensors(unet, rank=rank),
    }
    flat = {f"{part}.{key}": x for part, inner in content.items() for key, x in inner.items()}
    if path.suffix == ".bin":
        torch.save(content, path)
    else:
        save_file({key: value.contiguous() for key, value in flat.items()}, path)
    return flat


def training_state(unet, published, *, kept="adapter_modules") -> dict[str, torch.Tensor]:
    """What accelerate saves during IP-Adapter's training, whose published file would be this one.

    Args:
        kept: which name of the processors' tensors is kept: "adapter_modules", "processors" (of
            the UNet), "some of each" or "both".
    """
    names = list(unet.attn_processors)
    state = {f"unet.{key}": value.clone() for key, value in unet.state_dict().items()}
    for key, value in published.items():
        part, _, rest = key.partition(".")
        if part == "image_proj":
            state[f"image_proj_model.{rest}"] = value.clone()
            continue
        number, _, inner = rest.partition(".")
        first = kept in ("adapter_modules", "both") or kept == "some of each" and int(number) % 3
        second = kept in ("processors", "both") or not first
        if first:
            state[f"adapter_modules.{number}.{inner}"] = value.clone()
        if second:
            state[f"unet.{names[int(number)]}.{inner}"] = value.clone()
    return state
