"""A word and a LoRA trained together on six pictures of one drawn stranger, in the miniature world.

python -m persongen_jax.train --config configs/mini/pivotal_tuning.py
"""

from configs.mini.textual_inversion import get_config as inversion_config


def get_config():
    config = inversion_config()
    config.method = "pivotal_tuning"
    config.num_vectors = 2
    config.initializer = ""
    config.embedding_norm = 0.1
    config.embedding_steps = 300
    return config
