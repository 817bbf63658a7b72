"""The miniature's configs, in diffusers', transformers' and ArcFace's own keys."""

from persongen_jax.weights.random_base import SCHEDULER

SIDE = 64  # of an image, pixels
LATENT_CHANNELS = 12  # SDXL's four blur the inner face at this size (docs/miniature.md)
# Their standard deviation. The more channels show the same picture, the more of it is seen through
# equal noise, and the less there is to learn from the prompt. Smaller latents drown as SDXL's do.
LATENT_STD = (4 / LATENT_CHANNELS) ** 0.5

TEXT_WIDTHS = (64, 128)
TEXT_LAYERS = 3
VISION = {"hidden_size": 128, "image_size": 48, "num_hidden_layers": 4, "patch_size": 8}
CLIP_WIDTH = 64  # of the joint space of texts and images

FACE_SIDE = 40  # of the crops that both face nets read
FACE_NET = {
    "layers": (1, 1, 2, 1),
    "widths": (24, 48, 96, 128),
    "input_size": FACE_SIDE,
    "embedding_dim": 128,
}
KEYPOINT_NET = {"image_size": SIDE, "widths": (16, 32, 64, 96)}

# The judges: of other architectures, so that no figure is measured by a method's own input.
VISION_JUDGE = {"hidden_size": 128, "image_size": SIDE, "num_hidden_layers": 5, "patch_size": 8}
TEXT_JUDGE_LAYERS = 2
FACE_JUDGE = {
    "layers": (2, 2, 2),
    "widths": (32, 64, 128),
    "input_size": FACE_SIDE,
    "embedding_dim": 128,
}
KEYPOINT_JUDGE = {"image_size": SIDE, "widths": (24, 48, 96, 128), "hidden_features": 320}
# ArcFace's network with an output per part of data_pipeline.drawing.faults.PARTS: a logit.
PARTS_SIDE = 48
PARTS_JUDGE = {
    "layers": (1, 1, 1),
    "widths": (24, 48, 96),
    "input_size": PARTS_SIDE,
    "embedding_dim": 5,
}

__all__ = ["SCHEDULER", "clip_config", "text_config", "unet_config", "vae_config"]


def vae_config() -> dict:
    """diffusers' ``vae/config.json``; ``scaling_factor`` is measured after training."""
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [16, 32, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "force_upcast": True,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": LATENT_CHANNELS,
        "layers_per_block": 1,
        "mid_block_add_attention": False,
        # One group: with two channels per group, normalisation would remove absolute brightness.
        "norm_num_groups": 1,
        "sample_size": SIDE,
        "scaling_factor": 1.0,
    }


def unet_config() -> dict:
    """diffusers' ``unet/config.json``: two of SDXL's three levels, the first without attention."""
    time_dim = 32
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": time_dim,
        "attention_head_dim": [1, 3],
        "block_out_channels": [48, 96],
        "cross_attention_dim": sum(TEXT_WIDTHS),
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "layers_per_block": 1,
        "norm_num_groups": 16,
        "projection_class_embeddings_input_dim": 6 * time_dim + CLIP_WIDTH,
        "sample_size": SIDE // 4,
        "transformer_layers_per_block": [1, 1],
        "use_linear_projection": True,
    }


def text_config(tower: int, vocab_size: int, layers: int | None = None) -> dict:
    """transformers' config.json of text tower 0 (like CLIP-L's) or 1 (like bigG's)."""
    width = TEXT_WIDTHS[tower]
    return {
        "architectures": ["CLIPTextModelWithProjection" if tower else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_act": "gelu" if tower else "quick_gelu",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": width // 32,
        "num_hidden_layers": layers or TEXT_LAYERS,
        "max_position_embeddings": 77,
        "vocab_size": vocab_size,
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "layer_norm_eps": 1e-5,
        "projection_dim": CLIP_WIDTH,
    }


def vision_config(vision: dict | None = None) -> dict:
    """transformers' config.json of an image tower: VISION, or the judge's."""
    vision = vision or VISION
    width = vision["hidden_size"]
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_act": "quick_gelu",
        "intermediate_size": 4 * width,
        "layer_norm_eps": 1e-5,
        "num_attention_heads": width // 32,
        "num_channels": 3,
        "projection_dim": CLIP_WIDTH,
        **vision,
    }


def clip_config(text: dict, vision: dict) -> dict:
    """config.json of a whole CLIPModel from those of its towers."""
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": CLIP_WIDTH,
        "logit_scale_init_value": 2.6592,
        "text_config": text,
        "vision_config": vision,
    }
