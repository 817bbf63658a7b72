"""The thesis' final method (5.2.4) in the miniature world: the project's main job.

    python -m persongen_jax.train --config configs/mini/photomaker_bg.py

PhotoMaker, with a separate prompt for the background. Everything is learned here from scratch;
the thesis starts from PhotoMaker's weights (--config.start_from=FILE).
"""

from configs.mini.photomaker import get_config as photomaker_config


def get_config():
    config = photomaker_config()
    config.method = "photomaker_bg"
    return config
