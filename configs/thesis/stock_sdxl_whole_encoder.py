"""Experiment 1 of the misconfigured ones (thesis, A.1.1): stock SDXL trained at 512, seen at 1024.

The whole CLIP encoder, the MLP and LoRA of rank 64, as in whole_encoder_and_lora.py.
"""

from configs.thesis import STOCK_SDXL
from configs.thesis.whole_encoder_and_lora import get_config as whole_encoder_and_lora


def get_config():
    config = whole_encoder_and_lora()
    config.base = STOCK_SDXL
    config.validation_size = 1024
    return config
