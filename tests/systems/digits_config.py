"""Digits in a minute on two cores.

python -m persongen_jax.train --config tests/systems/digits_config.py
"""

from tests.systems.digits import Digits


def get_config():
    config = Digits.defaults()
    config.system = "tests.systems.digits:Digits"
    config.lr_model = 2e-3
    config.batch_size, config.steps = 64, 300
    config.lr_schedule, config.warmup_steps, config.ema_decay = "cosine", 20, 0.99
    config.checkpoint_every = config.validation_every = 100
    config.validation_steps = 20
    config.metrics = ("tests.systems.digits_metric:ReadAsAsked",)
    return config
