"""The final method with layers of the text and visual encoders trained too (thesis, 3.3.3).

    python -m persongen_jax.train --config configs/thesis/photomaker_bg_and_encoders.py \\
        --config.base=/path/to/sdxl --config.id_encoder=/path/to/clip-vit-large-patch14 \\
        --config.data=/path/to/photographs --config.start_from=/path/to/photomaker-v1.bin

The layers are those of cascade_and_encoders.py.
"""

from configs.photomaker_bg import get_config as photomaker_bg_config
from configs.thesis import LAST_LAYERS
from persongen_jax.methods.thesis.photomaker_bg import PhotoMakerBackground


def get_config():
    config = photomaker_bg_config()
    config.trainable = (*PhotoMakerBackground.groups, *LAST_LAYERS)
    return config
