"""Renames diffusers' names to the original (sgm) ones, the inverse of
weights/formats/sdxl/original.py.

Written independently: patterns on diffusers' names and arithmetic on their numbers.
"""

import re

import numpy as np

# A tiny one of SDXL's structure.
UNET = {
    "sample_size": 8,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "attention_head_dim": [1, 2, 2],
    "block_out_channels": (4, 8, 8),
    "cross_attention_dim": 12,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "norm_num_groups": 2,
    "projection_class_embeddings_input_dim": 30,
    "transformer_layers_per_block": [1, 1, 2],
    "use_linear_projection": True,
}


def unet_to_sgm(key, config):
    layers = config["layers_per_block"]

    def place(match):
        kind, i, part, j = match[1], int(match[2]), match[3], int(match[4])
        if kind == "down":
            n = 1 + i * (layers + 1) + (layers if part == "downsamplers" else j)
            slot = {"resnets": "0", "attentions": "1", "downsamplers": "0.op"}[part]
            return f"input_blocks.{n}.{slot}"
        last = part == "upsamplers"
        n = i * (layers + 1) + (layers if last else j)
        sampler = "2" if "Cross" in config["up_block_types"][i] else "1"
        slot = {"resnets": "0", "attentions": "1", "upsamplers": sampler + ".conv"}[part]
        return f"output_blocks.{n}.{slot}"

    key = re.sub(r"samplers\.0\.conv\.", "samplers.0.", key)
    key = re.sub(r"^(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)", place, key)
    key = re.sub(r"^mid_block\.resnets\.1", "middle_block.2", key)
    key = re.sub(r"^mid_block\.resnets\.0", "middle_block.0", key)
    key = re.sub(r"^mid_block\.attentions\.0", "middle_block.1", key)
    if re.match(r"(in|out)put_blocks\.\d+\.0\.|middle_block\.[02]\.", key):
        key = key.replace("norm1", "in_layers.0").replace("conv1", "in_layers.2")
        key = key.replace("norm2", "out_layers.0").replace("conv2", "out_layers.3")
        key = key.replace("time_emb_proj", "emb_layers.1")
        key = key.replace("conv_shortcut", "skip_connection")
    for ours, theirs in {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }.items():
        key = re.sub(rf"^{re.escape(ours)}\.", theirs + ".", key)
    return "model.diffusion_model." + key


def vae_to_sgm(key, value):
    if ".attentions.0.to_" in key and value.ndim == 2:
        value = value[:, :, None, None]
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(
        r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", key
    )
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
    key = key.replace("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out")
    key = re.sub(r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1", key)
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    return "first_stage_model." + key, value


def open_clip(state):
    out = {}
    for key, value in state.items():
        if "k_proj" in key or "v_proj" in key:
            continue
        if "q_proj" in key:
            value = np.concatenate([state[key.replace("q_proj", f"{x}_proj")] for x in "qkv"])
            key = key.replace("self_attn.q_proj.", "attn.in_proj_")
        if key == "text_projection.weight":
            key, value = "text_projection", np.ascontiguousarray(value.T)
        key = key.replace("encoder.layers", "transformer.resblocks")
        key = key.replace("self_attn.out_proj", "attn.out_proj")
        key = key.replace("layer_norm1", "ln_1").replace("layer_norm2", "ln_2")
        key = key.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")
        key = key.replace("final_layer_norm", "ln_final")
        key = key.replace("embeddings.token_embedding", "token_embedding")
        key = key.replace("embeddings.position_embedding.weight", "positional_embedding")
        out["conditioner.embedders.1.model." + key] = value
    return out


def checkpoint(state, unet_config):
    """Component -> canonical name -> array, as in one file, with the extras of real ones."""
    out = {unet_to_sgm(key, unet_config): value for key, value in state["unet"].items()}
    out |= dict(vae_to_sgm(key, value) for key, value in state["vae"].items())
    text = "conditioner.embedders.0.transformer.text_model."
    out |= {text + key: value for key, value in state["text_encoder"].items()}
    out |= open_clip(state["text_encoder_2"])
    out[text + "embeddings.position_ids"] = np.arange(6)[None]
    out["conditioner.embedders.1.model.logit_scale"] = np.array(4.6, np.float32)
    out["denoiser.sigmas"] = np.zeros(1000, np.float32)
    out["model_ema.decay"] = np.array(0.99, np.float32)
    return out
