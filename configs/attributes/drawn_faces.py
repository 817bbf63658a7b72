"""Drawn faces, 32x32, from seven attributes; training never sees a fifth of the combinations.

    python -m persongen_jax.train --config configs/attributes/classifier.py:drawn_faces \\
        --workdir runs/attributes/drawn_faces_classifier
    python -m persongen_jax.train --config configs/attributes/drawn_faces.py
    python -m persongen_jax.generate --run runs/attributes/drawn_faces \\
        --attributes "glasses=1,beard=0" --images 16

64x64: --config.size=64, with a classifier of that size.
"""

from configs.attributes.digits import METRICS
from persongen_jax.systems.ddpm import Ddpm


def get_config():
    config = Ddpm.defaults()
    config.system = "ddpm"
    config.data, config.size = "drawn_faces", 32
    config.block_out_channels, config.attention = (32, 64, 96), (False, False, True)
    config.layers_per_block, config.norm_num_groups = 1, 8

    config.steps, config.batch_size = 2000, 64
    config.cpu_devices = 2  # must divide the batch
    # Muon updates matrices and kernels, Adam the rest; as for the miniature's UNet.
    config.optimizer = "muon"
    config.optimizer_options = {
        "ns_steps": 4,
        "consistent_rms": 0.2,
        "weight_decay": 0.01,
        "adam_ratio": 0.4,
    }
    config.lr_model = 5e-3
    config.lr_schedule, config.warmup_steps, config.clip_norm = "cosine", 50, 1.0
    config.min_snr_gamma = 5.0
    config.ema_decay, config.ema_warmup = 0.999, True
    config.log_every, config.checkpoint_every = 25, 250

    config.validation_every, config.validation_images = 1000, 128
    config.validation_steps, config.validation_guidance = 25, 3.0
    config.metrics = METRICS
    config.classifier = "runs/attributes/drawn_faces_classifier"
    return config
