"""Identity through an attention branch, and LoRA everywhere (thesis, 5.2.3), in miniature.

    python -m persongen_jax.train --config configs/mini/ip_lora.py

Everything is learned here from scratch; the thesis starts from PhotoMaker's weights
(--config.start_from=FILE).
"""

from configs.mini.id_branch import get_config as id_branch_config


def get_config():
    config = id_branch_config()
    config.method = "ip_lora"
    return config
