"""The smallest DDPM on digits, for tests; the classifier of ``CLASSIFIER`` judges it, if set.

python -m persongen_jax.train --config tests/systems/ddpm_config.py
"""

from configs.attributes.digits import get_config as digits


def get_config():
    config = digits()
    config.block_out_channels, config.norm_num_groups = (8, 16), 4
    config.attention_head_dim, config.layers_per_block = 4, 1
    config.batch_size, config.steps, config.warmup_steps = 16, 12, 2
    config.log_every, config.checkpoint_every, config.validation_every = 3, 6, 12
    config.validation_steps, config.validation_images = 3, 24
    return config
