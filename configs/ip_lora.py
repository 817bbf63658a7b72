"""Identity through an attention branch, and LoRA everywhere, on SDXL at 512 (thesis, 5.2.3).

    python -m persongen_jax.train --config configs/ip_lora.py --config.base=/path/to/sdxl \\
        --config.id_encoder=/path/to/clip-vit-large-patch14 --config.data=/path/to/photographs \\
        --config.start_from=/path/to/photomaker-v1.bin --workdir runs/ip_lora

The base layers and the branch start from PhotoMaker's LoRA.
"""

from configs.base import get_config as base_config


def get_config():
    config = base_config()
    config.method = "ip_lora"
    config.lr_lora = 1e-5
    config.lr_id_norm = 1e-4
    return config
