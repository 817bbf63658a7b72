"""PuLID in the miniature world, with its losses on samples of four steps.

    python -m persongen_jax.train --config configs/mini/pulid.py

The few-step base is the miniature's own, sampled in four trailing steps of DPM++ 2M: there is no
distilled one. CLIP's image tower takes the place of EVA-CLIP.
"""

from configs.mini.photomaker import ASSETS
from configs.mini.photomaker import get_config as photomaker_config


def get_config():
    config = photomaker_config()
    config.method = "pulid"
    config.face_encoder = str(ASSETS / "face_net" / "model.safetensors")
    config.pulid_crop = 64
    config.pulid_few_steps = 4
    config.pulid_face_points = f"keypoints:{ASSETS / 'sdxl' / 'face_detector'}"
    config.id_norm_gain = 0.2  # untrained tokens at full strength drown the prompt
    config.lr_projections = 1e-3
    config.lr_identity = 1e-3
    config.validation_merge_step = -1
    return config
