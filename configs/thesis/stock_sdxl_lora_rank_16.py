"""Experiment 5 of the misconfigured ones (thesis, A.1.5): LoRA of rank 16 after rank 1.

Continues stock_sdxl_lora_rank_1.py's run, whose LoRA of rank 1 is replaced by a new one.
"""

from configs.thesis.stock_sdxl_lora_rank_1 import get_config as lora_rank_1


def get_config():
    config = lora_rank_1()
    config.start_from = "runs/thesis/stock_sdxl_lora_rank_1"
    config.rank, config.lora_alpha = 16, 16.0
    return config
