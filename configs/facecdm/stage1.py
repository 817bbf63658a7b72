"""FaceCDM, stage 1: the image branch and its projection; see configs/facecdm/__init__.py."""

from configs.base import get_config as base_config


def get_config():
    config = base_config()
    config.method = "facecdm"
    config.facecdm_stage = 1
    # The seed's own generation; branches and ControlNet have a scale of 0.8 there by default.
    config.validation_steps = 30
    config.validation_guidance = 5.0
    config.validation_merge_step = -1  # references act from the first step on
    return config
