"""Identity through text space and an attention branch on SDXL at 512 (thesis, 5.2.2).

    python -m persongen_jax.train --config configs/dual.py --config.base=/path/to/sdxl \\
        --config.id_encoder=/path/to/clip-vit-large-patch14 --config.data=/path/to/photographs \\
        --config.start_from=/path/to/photomaker-v1.bin --workdir runs/dual

It starts from the ID encoder of PhotoMaker's weights.
"""

from configs.base import get_config as base_config


def get_config():
    config = base_config()
    config.method = "dual"
    config.lr_identity = 1e-5
    config.lr_id_norm = 1e-4
    return config
