"""A ControlNet on a frozen SDXL at 512: a copy of the UNet's encoder that reads a control image.

    python -m persongen_jax.train --config configs/controlnet.py --config.base=/path/to/sdxl \\
        --config.data=/path/to/images --config.control=pose --workdir runs/controlnet

Zhang et al., arXiv 2302.05543. The optimizer is that of diffusers' training script, after the
warm-up of all configs here; prompts are dropped in each step anew, control images apart from them,
and time ids are the images' own (the script has no warm-up, drops a prompt for good, has no control
dropout, and gives all images the same time ids).
"""

from configs.base import get_config as base_config


def get_config():
    config = base_config()
    config.method = "controlnet"
    config.drop_prob = 0.1
    config.control_drop_prob = 0.05
    config.face_loss_prob = 0.0
    config.lr_controlnet = 5e-6
    config.optimizer = "adamw"
    config.optimizer_options.weight_decay = 1e-2
    config.clip_norm = 1.0
    config.metrics = ("clip_t", "pose_error", "pck", "joints_found")
    return config
