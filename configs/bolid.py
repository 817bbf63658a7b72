"""BoLID on SDXL at 512: face and body branches, losses on joints and captions.

    python -m persongen_jax.train --config configs/bolid.py --config.base=/path/to/sdxl \\
        --config.data=/path/to/photographs --config.face_encoder=w600k_r50.onnx \\
        --config.id_encoder=/path/to/clip-vit-large-patch14 \\
        --config.loss_pose_net=movenet:/path/to/movenet-thunder.json \\
        --config.loss_clip=EVA02_CLIP_L_336_psz14_s6B.pt --workdir runs/bolid

The records need keypoints (`python -m data_pipeline.manifest DIR --pose ...`).
"""

from configs.base import get_config as base_config


def get_config():
    config = base_config()
    config.method = "bolid"
    config.face_loss_prob = 0.0  # the whole body counts
    # All settings, so that each is a flag: --config.losses.keypoints.noise_from=0.1
    config.losses = {
        "keypoints": {"weight": 0.1, "noise_from": 0.0, "noise_to": 0.5},
        "clip": {"weight": 0.1, "noise_from": 0.0, "noise_to": 0.5},
    }
    # The seed's own generation and metrics (evaluation/benchmarks.py, "bolid").
    config.validation_steps = 30
    config.validation_guidance = 7.5
    config.validation_merge_step = -1  # references act from the first step on
    config.metrics = ("clip_t", "fid", "pose_error", "joints_found", "face_sim", "detection_rate")
    return config
