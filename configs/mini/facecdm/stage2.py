"""FaceCDM, stage 2, in the miniature world: the face branch as well."""

from configs.mini.facecdm.stage1 import get_config as stage1_config


def get_config():
    config = stage1_config()
    config.facecdm_stage = 2
    config.start_from = "runs/mini/facecdm/stage1"
    return config
