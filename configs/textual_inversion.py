"""Textual Inversion: one person becomes a word, for SDXL (arXiv 2208.01618).

    python -m persongen_jax.train --config configs/textual_inversion.py \\
        --config.base=/path/to/sdxl --config.data=/path/to/pictures --config.token="<me>" \\
        --config.initializer=woman --workdir runs/me

Only the word's own embeddings move, in both text towers. Captions are drawn from templates. The
settings are those of diffusers' README, 4 pictures a step in place of its accumulation.
"""

from configs.lora import get_config as lora_config


def get_config():
    config = lora_config()
    config.method = "textual_inversion"
    config.size = 768
    config.batch_size = 4
    config.caption_templates = True
    config.initializer = "person"
    config.lr_embeddings = 5e-4
    config.steps = 500
    config.optimizer_options.weight_decay = 1e-2
    config.clip_norm = 0.0
    return config
