"""BoLID in the miniature world: faces and bodies, losses on joints and captions.

python -m persongen_jax.train --config configs/mini/bolid.py
"""

from configs.mini.photomaker import ASSETS
from configs.mini.photomaker import get_config as photomaker_config


def get_config():
    config = photomaker_config()
    config.method = "bolid"
    config.face_encoder = str(ASSETS / "face_net" / "model.safetensors")
    # Framings of all kinds, so that there are bodies to see.
    config.data = "people:in_train?identities=1000&pictures=12"
    config.bolid_reduced = 64
    config.id_norm_gain = 0.2  # untrained tokens at full strength drown the prompt
    config.face_loss_prob = 0.25
    # Networks of the base, which judge nothing.
    config.loss_pose_net = f"keypoints:{ASSETS / 'sdxl' / 'face_detector'}"
    config.loss_clip = str(ASSETS / "clip")
    config.losses = {
        "keypoints": {"weight": 0.1, "noise_from": 0.0, "noise_to": 0.7},
        "clip": {"weight": 0.1, "noise_from": 0.0, "noise_to": 0.7},
    }
    config.lr_projections = 3e-3
    config.lr_identity = 1e-3
    config.validation_merge_step = -1
    unseen = "pictures=3&first_picture=1000000&framing=figures"
    config.validate_in_train = f"people:in_train?identities=10&{unseen}"
    config.validate_out_of_train = f"people:out_of_train?identities=10&{unseen}"
    config.validate_out_of_domain = f"people:out_of_domain?identities=7&{unseen}"
    config.metrics = ("clip_t", "face_sim", "detection_rate", "pose_error", "joints_found")
    return config
