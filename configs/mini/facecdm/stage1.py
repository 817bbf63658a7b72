"""FaceCDM, stage 1, in the miniature world: the image branch.

    bash launch/stages.sh runs/mini/facecdm configs/mini/facecdm/stage1.py \\
        configs/mini/facecdm/stage2.py configs/mini/facecdm/stage3.py
"""

from configs.mini.photomaker import ASSETS
from configs.mini.photomaker import get_config as photomaker_config


def get_config():
    config = photomaker_config()
    config.method = "facecdm"
    config.facecdm_stage = 1
    config.face_encoder = str(ASSETS / "face_net" / "model.safetensors")
    # Framings of all kinds, whose skeletons have more than shoulders.
    config.data = "people:in_train?identities=1000&pictures=12"
    config.facecdm_reduced = 64
    config.id_norm_gain = 0.2  # untrained tokens at full strength drown the prompt
    config.lr_projections = 3e-3
    config.lr_identity = 1e-3
    config.lr_controlnet = 3e-4
    config.validation_merge_step = -1
    config.metrics = ("clip_t", "face_sim", "rank1_10", "rank1_100", "detection_rate")
    config.metrics += ("face_sharpness", "pose_error", "pck")
    return config
