"""InstantID in the miniature world: a face's embedding as 16 tokens, five points by an IdentityNet.

python -m persongen_jax.train --config configs/mini/instantid.py
"""

from configs.mini.photomaker import ASSETS
from configs.mini.photomaker import get_config as photomaker_config


def get_config():
    config = photomaker_config()
    config.method = "instantid"
    config.face_encoder = str(ASSETS / "face_net" / "model.safetensors")
    config.face_point_radius = 1  # pictures of 64 pixels
    config.drop_prob = 0.05
    config.text_drop_prob = 0.05
    config.identity_drop_prob = 0.05
    config.id_norm_gain = 0.2  # untrained tokens at full strength drown the prompt
    config.lr_projections = 1e-3
    config.lr_identity = 1e-3
    config.lr_controlnet = 3e-4
    config.validation_merge_step = -1
    return config
