"""PhotoMaker v2 on SDXL at 512, trained as version 1 is: the released one's training is not known.

    python -m persongen_jax.train --config configs/photomaker_v2.py --config.base=/path/to/sdxl \\
        --config.data=/path/to/photographs --config.face_encoder=w600k_r50.onnx \\
        --config.id_encoder=/path/to/clip-vit-large-patch14 --workdir runs/photomaker_v2

Add --config.start_from=photomaker-v2.bin to go on from the released weights. The records need
landmarks (`python -m data_pipeline.manifest DIR --detector yunet`).
"""

from configs.base import get_config as base_config


def get_config():
    config = base_config()
    config.method = "photomaker_v2"
    return config
