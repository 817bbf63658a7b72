"""A ControlNet on skeletons in the miniature world (arXiv 2302.05543).

python -m persongen_jax.train --config configs/mini/controlnet.py
"""

from configs.mini.photomaker import get_config as photomaker_config


def get_config():
    config = photomaker_config()
    config.method = "controlnet"
    # All framings, so that skeletons have more than shoulders.
    config.data = "people:in_train?identities=1000&pictures=12"
    config.drop_prob = 0.1
    config.control_drop_prob = 0.05
    config.face_loss_prob = 0.0
    config.min_snr_gamma = 0.0
    config.lr_controlnet = 3e-4
    config.optimizer = "adamw"
    config.optimizer_options.weight_decay = 1e-2
    config.metrics = ("clip_t", "pose_error", "pck", "joints_found", "face_sharpness")
    unseen = "pictures=3&first_picture=1000000"
    config.validate_in_train = f"people:in_train?identities=10&{unseen}"
    config.validate_out_of_train = f"people:out_of_train?identities=10&{unseen}"
    config.validate_out_of_domain = ""
    config.validation_gallery = ""
    return config
