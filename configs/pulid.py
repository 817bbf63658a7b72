"""PuLID v1 on SDXL at 1024: first the diffusion loss alone, then the losses on few-step samples.

    python -m persongen_jax.train --config configs/pulid.py --config.base=/path/to/sdxl \\
        --config.data=/path/to/photographs --config.face_encoder=glintr100.onnx \\
        --config.id_encoder=EVA02_CLIP_L_336_psz14_s6B.pt --workdir runs/pulid_1

A second run starts from the first: --config.start_from=runs/pulid_1 --config.pulid_few_steps=4
--config.pulid_face_points=keypoints:DIR (or --config.pulid_id=0). The records need landmarks.
docs/published_adapters.md says what of the training is not published.
"""

from configs.base import get_config as base_config


def get_config():
    config = base_config()
    config.method = "pulid"
    config.size = 1024
    config.face_loss_prob = 0.0
    config.validation_steps = 30
    config.validation_merge_step = -1  # references act from the first step on
    return config
