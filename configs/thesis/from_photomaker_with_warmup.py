"""Experiment 7 (thesis, 5.1.8), the baseline: experiment 6 with 500 steps of warm-up."""

from configs.thesis.from_photomaker import get_config as from_photomaker_config


def get_config():
    config = from_photomaker_config()
    config.warmup_steps = 500
    return config
