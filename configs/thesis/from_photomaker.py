"""Experiment 6 (thesis, 5.1.7): heads, MLP and LoRA of rank 64 from PhotoMaker's weights.

LoRA at 1e-5, and no warm-up.
"""

from configs.base import get_config as base_config
from configs.thesis import HEADS, LORA, MLP, PHOTOMAKER


def get_config():
    config = base_config()
    config.trainable = (HEADS, MLP, LORA)
    config.start_from = PHOTOMAKER
    config.lr_lora = 1e-5
    config.warmup_steps = 0
    return config
