"""FaceCDM, stage 3: the ControlNet on the pose and everything; see configs/facecdm/__init__.py."""

from configs.facecdm.stage2 import get_config as stage2_config


def get_config():
    config = stage2_config()
    config.facecdm_stage = 3
    config.start_from = "runs/facecdm/stage2"
    config.control_drop_prob = 0.05
    config.metrics = (*config.metrics, "pose_error", "pck", "face_sharpness")
    return config
