"""Handwritten digits, 8x8, conditioned on the digit; nothing to download.

    python -m persongen_jax.train --config configs/attributes/classifier.py:digits \\
        --workdir runs/attributes/digits_classifier
    python -m persongen_jax.train --config configs/attributes/digits.py
    python -m persongen_jax.generate --run runs/attributes/digits --attributes digit=7 --images 16
"""

from persongen_jax.systems.ddpm import Ddpm

METRICS = (
    *("attribute_accuracy", "frechet_attributes"),
    *("precision_attributes", "recall_attributes"),
)


def get_config():
    config = Ddpm.defaults()
    config.system = "ddpm"
    config.data, config.size = "digits", 8
    config.block_out_channels, config.attention = (32, 64), (False, True)
    config.norm_num_groups = 8
    config.hide_prob = 0.0  # a single class is known or unknown as a whole

    config.steps, config.batch_size = 3000, 128
    config.lr_model = 2e-3
    config.lr_schedule, config.warmup_steps, config.clip_norm = "cosine", 100, 1.0
    config.ema_decay, config.ema_warmup = 0.999, True
    config.log_every, config.checkpoint_every = 50, 500

    config.validation_every, config.validation_images = 1500, 200
    config.validation_guidance = 2.0
    config.metrics = METRICS
    config.classifier = "runs/attributes/digits_classifier"
    return config
