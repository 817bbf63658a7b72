"""Identity through text space and an attention branch (thesis, 5.2.2) in the miniature world.

python -m persongen_jax.train --config configs/mini/dual.py
"""

from configs.mini.id_branch import get_config as id_branch_config


def get_config():
    config = id_branch_config()
    config.method = "dual"
    return config
