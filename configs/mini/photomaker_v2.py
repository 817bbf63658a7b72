"""PhotoMaker v2 in the miniature world: two tokens per reference, of a recogniser and CLIP.

python -m persongen_jax.train --config configs/mini/photomaker_v2.py

The training of the released weights is not known; this is version 1's.
"""

from configs.mini.photomaker import ASSETS
from configs.mini.photomaker import get_config as photomaker_config


def get_config():
    config = photomaker_config()
    config.method = "photomaker_v2"
    config.face_encoder = str(ASSETS / "face_net" / "model.safetensors")
    return config
