"""The thesis' final method (5.2.4) in the miniature world: the project's main job.

    python -m persongen_jax.train --config configs/mini/photomaker_bg.py

PhotoMaker, with the background as a prompt of its own. Everything is learned here, so that the
curve shows it; the thesis starts from PhotoMaker's weights, as does

    … --config.start_from=persongen_jax/assets/photomaker-v1.safetensors
"""

from configs.mini.photomaker import get_config as photomaker_config


def get_config():
    config = photomaker_config()
    config.method = "photomaker_bg"
    return config
