"""Experiment 2 of the misconfigured ones (thesis, A.1.2): only the MLP and the heads."""

from configs.thesis import HEADS, MLP
from configs.thesis.stock_sdxl_whole_encoder import get_config as stock_sdxl_whole_encoder_config


def get_config():
    config = stock_sdxl_whole_encoder_config()
    config.trainable = (HEADS, MLP)
    return config
