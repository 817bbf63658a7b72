"""The layers of a small model, and a LoRA's two halves for one of them."""

import numpy as np

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0"

UNET = f"{ATTENTION}.attn1.to_k"

TEXT = "encoder.layers.1.self_attn.q_proj"

RANK, ALPHA = 4, 2.0

WIDTHS = {"unet": 12, "text_encoder": 8, "text_encoder_2": 10}

MODULES = {
    "unet": {
        f"{ATTENTION}.{name}": (12, 12)
        for name in ("attn1.to_q", "attn1.to_k", "attn1.to_out.0", "attn2.to_k", "ff.net.2")
    }
    | {"down_blocks.0.resnets.0.conv1": (6, 4, 3, 3), "up_blocks.0.attentions.0.proj_in": (12, 12)}
    | {"mid_block.attentions.0.proj_in": (12, 12), "conv_in": (4, 4, 3, 3)},
    "text_encoder": {TEXT: (8, 8), "encoder.layers.0.mlp.fc1": (16, 8)},
    "text_encoder_2": {TEXT: (10, 10), "text_projection": (10, 10)},
}


def halves(component, seed=0):
    rng, width = np.random.default_rng(seed), WIDTHS[component]
    shapes = ((RANK, width), (width, RANK))
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def pair(stem, inner, outer=None):
    down, up = np.ones((2, inner), np.float32), np.ones((outer or inner, 2), np.float32)
    return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
