"""Experiment 3 of the misconfigured ones (thesis, A.1.3): with LoRA of rank 1 at 1e-5."""

from configs.thesis import HEADS, LORA, MLP
from configs.thesis.stock_sdxl_fuse_module import get_config as stock_sdxl_fuse_module_config


def get_config():
    config = stock_sdxl_fuse_module_config()
    config.trainable = (HEADS, MLP, LORA)
    config.rank, config.lora_alpha = 1, 1.0
    config.lr_lora = 1e-5
    return config
