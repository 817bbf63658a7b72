"""The settings of a UNet's config.json: diffusers' defaults, and what is implemented of it."""

# diffusers' defaults for keys that a config.json may omit.
DEFAULTS = {
    "in_channels": 4,
    "out_channels": 4,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
}

# Keys for which only these values are implemented; diffusers' other values are refused by name.
REQUIRED = {
    "center_input_sample": (False,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "only_cross_attention": (False,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1, 1.0),
    "dropout": (0, 0.0),
    "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),
    "dual_cross_attention": (False,),
    "class_embed_type": (None,),
    "addition_embed_type": (None, "text_time"),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1, 1.0),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
}

# Block types, and whether a transformer follows each of their resnets.
BLOCK_TYPES = {
    "DownBlock2D": False,
    "CrossAttnDownBlock2D": True,
    "UNetMidBlock2DCrossAttn": True,
    "UNetMidBlock2D": False,
    "UpBlock2D": False,
    "CrossAttnUpBlock2D": True,
}


def complete_config(config: dict, defaults: dict = DEFAULTS, required: dict = REQUIRED) -> dict:
    """``config`` with diffusers' defaults filled in; ValueError on a value not implemented.

    Args:
        defaults, required: of the class that the config is of.
    """
    for key, allowed in required.items():
        if key in config and config[key] not in allowed:
            raise ValueError(
                f"UNet config: {key}={config[key]!r} is not supported; supported: "
                + ", ".join(repr(value) for value in allowed)
            )
    config = {**defaults, **config}
    levels = len(config["block_out_channels"])
    for key in ("down_block_types", "up_block_types"):
        if key in config and len(config[key]) != levels:
            raise ValueError(
                f"UNet config: {key} has {len(config[key])} entries, block_out_channels {levels}"
            )
    for key in (
        "layers_per_block",
        "cross_attention_dim",
        "transformer_layers_per_block",
        "attention_head_dim",
    ):
        if not isinstance(config[key], int) and len(config[key]) != levels:
            raise ValueError(
                f"UNet config: {key} has {len(config[key])} entries, block_out_channels {levels}"
            )
        if isinstance(config[key], int):
            config[key] = [config[key]] * levels
    return config
