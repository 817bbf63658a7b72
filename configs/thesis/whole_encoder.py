"""Experiment 2 (thesis, 5.1.2): experiment 1 without LoRA."""

from configs.thesis import ENCODER, HEADS, MLP
from configs.thesis.whole_encoder_and_lora import get_config as whole_encoder_and_lora_config


def get_config():
    config = whole_encoder_and_lora_config()
    config.trainable = (ENCODER, HEADS, MLP)  # an untrained LoRA adds nothing
    return config
