"""FaceCDM, stage 2: the face branch as well; see configs/facecdm/__init__.py."""

from configs.facecdm.stage1 import get_config as stage1_config


def get_config():
    config = stage1_config()
    config.facecdm_stage = 2
    config.start_from = "runs/facecdm/stage1"
    return config
