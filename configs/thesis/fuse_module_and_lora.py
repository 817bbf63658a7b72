"""Experiment 4 (thesis, 5.1.4): experiment 3 with LoRA of rank 1 at 1e-5."""

from configs.thesis import HEADS, LORA, MLP
from configs.thesis.fuse_module import get_config as fuse_module_config


def get_config():
    config = fuse_module_config()
    config.trainable = (HEADS, MLP, LORA)
    config.rank, config.lora_alpha = 1, 1.0
    config.lr_lora = 1e-5
    return config
