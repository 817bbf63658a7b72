"""InstantID on SDXL at 1024: face tokens by a resampler, five points by an IdentityNet.

    python -m persongen_jax.train --config configs/instantid.py --config.base=/path/to/sdxl \\
        --config.data=/path/to/photographs --config.face_encoder=glintr100.onnx \\
        --workdir runs/instantid

Wang et al., arXiv 2401.07519; rates, drops and optimizer are those of the training code that its
authors approve of (MFaceTech/InstantID). The records need landmarks (`python -m
data_pipeline.manifest DIR --detector yunet`). To go on from the published weights:
`--config.start_from=ip-adapter.bin --config.controlnet=ControlNetModel`.
"""

from configs.base import get_config as base_config


def get_config():
    config = base_config()
    config.method = "instantid"
    config.size = 1024
    config.batch_size = 8
    config.drop_prob = 0.05
    config.text_drop_prob = 0.05
    config.identity_drop_prob = 0.05
    config.face_loss_prob = 0.0
    config.optimizer = "adamw"
    config.optimizer_options.weight_decay = 1e-2
    config.remat = True
    # The released script's sampling; references act from the first step on.
    config.validation_steps = 30
    config.validation_guidance = 5.0
    config.validation_merge_step = -1
    return config
