"""PhotoMaker and a background branch on SDXL at 512: the thesis' final method (sections 5.2.4, 6).

    python -m persongen_jax.train --config configs/photomaker_bg.py --config.base=/path/to/sdxl \\
        --config.id_encoder=/path/to/clip-vit-large-patch14 --config.data=/path/to/photographs \\
        --config.start_from=/path/to/photomaker-v1.bin --workdir runs/photomaker_bg

The manifest's "background" describes the background, and the caption does not repeat it.
"""

from configs.base import get_config as base_config


def get_config():
    config = base_config()
    config.method = "photomaker_bg"
    # 1e-5 for every group: at 1e-4 the branches gave artefacts (thesis, 5.2.1).
    config.lr_background = 1e-5
    return config
