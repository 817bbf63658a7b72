"""Experiment 4 of the misconfigured ones (thesis, A.1.4): in stages.

First stock_sdxl_fuse_module.py's run, then LoRA.
"""

from configs.thesis.stock_sdxl_lora_rank_1 import get_config as lora_rank_1


def get_config():
    config = lora_rank_1()
    config.start_from = "runs/thesis/stock_sdxl_fuse_module"
    return config
