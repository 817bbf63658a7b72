"""DreamBooth: the whole UNet on one person's pictures, for SDXL at 1024 (arXiv 2208.12242).

    python -m persongen_jax.train --config configs/dreambooth.py --config.base=/path/to/sdxl \\
        --config.data=/path/to/pictures --config.token=ohwx --config.class_data=/path/to/women \\
        --config.class_prompt="a photo of a woman" --workdir runs/ohwx_dreambooth

Rates and decay are those that diffusers takes for training SDXL whole; its DreamBooth script for a
whole UNet is for SD 1.5.
"""

from configs.lora import get_config as lora_config


def get_config():
    config = lora_config()
    config.method = "dreambooth"
    config.lr_unet = 1e-6
    config.lr_text_encoders = 1e-6
    config.steps = 800
    config.optimizer_options.weight_decay = 1e-2
    config.remat = True
    return config
