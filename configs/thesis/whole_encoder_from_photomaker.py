"""Experiment 5 (thesis, 5.1.6): experiment 1 from PhotoMaker's weights; quality degrades."""

from configs.thesis import PHOTOMAKER
from configs.thesis.whole_encoder_and_lora import get_config as whole_encoder_and_lora_config


def get_config():
    config = whole_encoder_and_lora_config()
    config.start_from = PHOTOMAKER
    return config
