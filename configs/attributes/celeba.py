"""CelebA, 64x64, from its 40 attributes: the seed's experiment, with its network and rates.

CelebA's images may be used for non-commercial research only; they belong to their owners (see
http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html).

    python -m persongen_jax.train --config configs/attributes/classifier.py:celeb_a \\
        --workdir runs/attributes/celeba_classifier --config.download=True
    python -m persongen_jax.train --config configs/attributes/celeba.py

From a plain folder with CelebA's own table: --config.data=FOLDER. The seed's own conditioning,
1,380,080 parameters: --config.conditioning=input --config.drop_prob=0 --config.hide_prob=0
--config.validation_guidance=0.
"""

from configs.attributes.digits import METRICS
from persongen_jax.systems.ddpm import Ddpm


def get_config():
    config = Ddpm.defaults()
    config.system = "ddpm"
    config.data, config.size = "celeb_a", 64
    config.block_out_channels, config.attention = (32, 32, 32, 64), (False, True, True, True)
    config.drop_prob = 0.15

    config.steps, config.batch_size = 100_000, 128
    config.lr_model, config.warmup_steps, config.clip_norm = 1e-3, 500, 1.0
    config.lr_schedule = "cosine"
    config.ema_decay, config.ema_warmup = 0.9999, True
    config.log_every, config.checkpoint_every = 100, 2500

    config.validation_every, config.validation_images = 10_000, 1000
    config.metrics = METRICS
    config.classifier = "runs/attributes/celeba_classifier"
    return config
