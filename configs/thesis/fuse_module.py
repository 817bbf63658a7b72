"""Experiment 3 (thesis, 5.1.3): only the MLP and the projection heads, from scratch."""

from configs.base import get_config as base_config
from configs.thesis import HEADS, MLP


def get_config():
    config = base_config()
    config.trainable = (HEADS, MLP)
    config.warmup_steps = 0
    return config
