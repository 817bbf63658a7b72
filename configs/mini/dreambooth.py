"""DreamBooth, the whole UNet, on six pictures of one drawn stranger, in the miniature world.

python -m persongen_jax.train --config configs/mini/dreambooth.py
"""

from configs.mini.lora import get_config as lora_config


def get_config():
    config = lora_config()
    config.method = "dreambooth"
    config.lr_unet = 1e-4
    return config
