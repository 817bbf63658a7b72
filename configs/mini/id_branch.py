"""Identity through an attention branch (thesis, 5.2.1) in the miniature world.

python -m persongen_jax.train --config configs/mini/id_branch.py
"""

from configs.mini.photomaker import get_config as photomaker_config


def get_config():
    config = photomaker_config()
    config.method = "id_branch"
    # At full strength the untrained branch, read at every place of the picture, drowns the prompt,
    # and most of the run goes into unlearning it (seed 0, strangers: CLIP-T 19 at step 0 and 59 at
    # the end, Face-Sim 0.08; with this gain and these rates 80, 81 and 0.20).
    config.id_norm_gain = 0.2
    config.lr_projections = 3e-3
    config.lr_id_norm = 3e-3
    config.lr_identity = 1e-3
    return config
