"""PhotoMaker, a background and a body branch on SDXL at 512: the thesis code's last model.

    python -m persongen_jax.train --config configs/photomaker_bg_body.py \\
        --config.base=/path/to/sdxl --config.id_encoder=/path/to/clip-vit-large-patch14 \\
        --config.data=/path/to/photographs \\
        --config.start_from=/path/to/photomaker-v1.bin --workdir runs/photomaker_bg_body

The manifest's "background" describes the background, "body" the person's clothes and actions; the
caption repeats neither.
"""

from configs.base import get_config as base_config


def get_config():
    config = base_config()
    config.method = "photomaker_bg_body"
    # 1e-5 for every group, as in photomaker_bg.py.
    config.lr_background = 1e-5
    config.lr_body = 1e-5
    return config
