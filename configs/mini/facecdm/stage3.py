"""FaceCDM, stage 3, in the miniature world: the ControlNet on the pose, with everything."""

from configs.mini.facecdm.stage2 import get_config as stage2_config


def get_config():
    config = stage2_config()
    config.facecdm_stage = 3
    config.start_from = "runs/mini/facecdm/stage2"
    config.control_drop_prob = 0.05
    return config
