"""The bench's config for a CPU: PhotoMaker on a UNet of 275 million parameters, 256 px, float32.

    python -m persongen_jax.bench train --config configs/bench_mid.py --out runs/bench \\
        --versus torch

``base`` is a size of persongen_jax/weights/random_base.py: random weights, no file is opened.
"""

from configs.base import get_config as base_config


def get_config():
    config = base_config()
    config.base = "mid"
    config.dtype = "float32"
    config.size = 256
    config.batch_size = 4
    config.rank = 16
    config.lora_alpha = 16.0
    return config
