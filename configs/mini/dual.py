"""Identity through text space and an attention branch (thesis, 5.2.2) in the miniature world.

python -m persongen_jax.train --config configs/mini/dual.py
"""

from configs.mini.ip_adapter import get_config as ip_adapter_config


def get_config():
    config = ip_adapter_config()
    config.method = "dual"
    return config
