"""The same without attributes: the baseline for conditioning.

python -m persongen_jax.train --config configs/attributes/drawn_faces_unconditional.py
"""

from configs.attributes.drawn_faces import get_config as drawn_faces


def get_config():
    config = drawn_faces()
    config.conditioning = "none"
    config.validation_guidance = 0.0
    return config
