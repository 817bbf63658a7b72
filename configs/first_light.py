"""The whole job in two minutes on a laptop: PhotoMaker on a tiny random SDXL and real images.

    python -m data_pipeline.sample_photos --out data/sample_photos
    python -m persongen_jax.weights.random_base --out weights/tiny-sdxl
    python -m persongen_jax.train --config configs/first_light.py --workdir runs/first_light

A random base generates noise: this only shows every part at work and a falling loss. The same with
real weights, on your own images:

    python -m persongen_jax.train --config configs/base.py --config.base=/path/to/sdxl \\
        --config.data=/path/to/photographs --workdir runs/mine
"""

from configs.base import get_config as base_config


def get_config():
    config = base_config()
    config.base = "weights/tiny-sdxl"
    config.data = "data/sample_photos"
    config.dtype = "float32"
    config.size = 64
    config.batch_size = 8
    config.rank = 16
    config.lora_alpha = 16.0
    # A random base has to learn everything, and 20,000 steps at 1e-5 would take too long.
    config.lr_projections = 1e-3
    config.lr_fuse_module = 1e-3
    config.lr_lora = 3e-3
    config.warmup_steps = 20
    config.steps = 500
    config.checkpoint_every = 250
    return config
