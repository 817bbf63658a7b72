"""Experiment 1 (thesis, 5.1.1): like PhotoMaker's paper, from scratch; the identity collapses.

The whole CLIP encoder and the MLP at 1e-5, LoRA of rank 64 at 1e-4.
"""

from configs.base import get_config as base_config
from configs.thesis import ENCODER, HEADS, LORA, MLP


def get_config():
    config = base_config()
    config.trainable = (ENCODER, HEADS, MLP, LORA)
    config.lr_id_encoder = 1e-5
    config.lr_lora = 1e-4
    config.warmup_steps = 0
    return config
