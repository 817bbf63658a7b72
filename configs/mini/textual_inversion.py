"""Textual Inversion on six pictures of one drawn stranger, in the miniature world.

python -m persongen_jax.train --config configs/mini/textual_inversion.py
"""

from configs.mini.lora import get_config as lora_config


def get_config():
    config = lora_config()
    config.method = "textual_inversion"
    config.token = "<me>"
    config.initializer = "person"
    config.num_vectors = 4
    config.lr_embeddings = 1e-2
    return config
