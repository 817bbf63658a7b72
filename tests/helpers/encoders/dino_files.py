"""Tiny random DINO and DINOv2 twins of transformers', and their weights as facebookresearch's.

The renaming is written on its own, from facebookresearch's vision_transformer.py.
"""

import torch
import transformers

from tests.helpers.twins import randomise

TINY = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}


def torch_dino(image_size=32, **changes):
    config = {**TINY, "image_size": image_size, "intermediate_size": 192, "layer_norm_eps": 1e-6}
    return _random(transformers.ViTModel(transformers.ViTConfig(**{**config, **changes})))


def torch_dinov2(image_size=40, **changes):
    config = {**TINY, "image_size": image_size, "mlp_ratio": 2, **changes}
    return _random(transformers.Dinov2Model(transformers.Dinov2Config(**config)))


def _random(model):
    """Random positions and class token of the patches' size, so that a wrong place shows."""
    randomise(model, seed=3)
    with torch.no_grad():
        for table in (model.embeddings.position_embeddings, model.embeddings.cls_token):
            table.copy_(torch.randn(table.shape, generator=torch.Generator().manual_seed(4)))
    return model


def facebook_names(model):
    """A twin's state dict as dino_deitsmall16_pretrain.pth or dinov2_vits14_pretrain.pth has it."""
    state, is_v2 = model.state_dict(), model.embeddings.mask_token is not None
    layer = "encoder.layer" if is_v2 else "layers"
    named = {
        "cls_token": state["embeddings.cls_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    for leaf in ("weight", "bias"):
        named[f"patch_embed.proj.{leaf}"] = state[f"embeddings.patch_embeddings.projection.{leaf}"]
        for i in range(model.config.num_hidden_layers):
            theirs, ours = f"{layer}.{i}", f"blocks.{i}"
            parts = [state[f"{theirs}.attention.{x}_proj.{leaf}"] for x in "qkv"]
            named[f"{ours}.attn.qkv.{leaf}"] = torch.cat(parts)
            named[f"{ours}.attn.proj.{leaf}"] = state[f"{theirs}.attention.o_proj.{leaf}"]
            norms = ("norm1", "norm2") if is_v2 else ("layernorm_before", "layernorm_after")
            for n, norm in enumerate(norms, 1):
                named[f"{ours}.norm{n}.{leaf}"] = state[f"{theirs}.{norm}.{leaf}"]
            for fc in ("fc1", "fc2"):
                named[f"{ours}.mlp.{fc}.{leaf}"] = state[f"{theirs}.mlp.{fc}.{leaf}"]
            if is_v2:
                for n in (1, 2):
                    scale = state[f"{theirs}.layer_scale{n}.lambda1"]
                    named[f"{ours}.ls{n}.gamma"] = scale
    if is_v2:
        named["mask_token"] = state["embeddings.mask_token"]
    return {key: value.clone().contiguous() for key, value in named.items()}
