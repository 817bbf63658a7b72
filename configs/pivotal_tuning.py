"""Pivotal tuning: a word of two vectors and a LoRA, trained together, for SDXL at 1024.

    python -m persongen_jax.train --config configs/pivotal_tuning.py --config.base=/path/to/sdxl \\
        --config.data=/path/to/pictures --config.token="<me>" --workdir runs/me_pivotal

As diffusers' advanced script does it: the word is drawn with the vocabulary's spread and kept near
it, and stays as it is in the second half. Prodigy estimates the rates.
"""

from configs.lora import get_config as lora_config


def get_config():
    config = lora_config()
    config.method = "pivotal_tuning"
    config.rank = 8
    config.lora_alpha = 8.0
    config.num_vectors = 2
    config.embedding_norm = 0.1
    config.steps = 1000
    config.embedding_steps = 500
    config.batch_size = 3
    config.min_snr_gamma = 5.0
    config.optimizer = "prodigy"
    config.optimizer_options = {}
    config.lr_lora = 1.0
    config.lr_embeddings = 1.0
    return config
