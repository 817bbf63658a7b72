"""LoRA on one person's pictures, for SDXL at 1024; with class images DreamBooth-LoRA.

    python -m persongen_jax.train --config configs/lora.py --config.base=/path/to/sdxl \\
        --config.data=/path/to/pictures --config.token=ohwx --workdir runs/ohwx

Any folder that data_pipeline/records/folders.py reads: captions come from text files, or are
proposed, and name the person by ``config.token``. With ``--config.class_data=FOLDER
--config.class_prompt="a photo of a woman"`` images of the class are shown as well, and generated
where they are missing. The settings are those that diffusers' README takes for DreamBooth with
LoRA, except for the rank.
"""

from configs.base import get_config as base_config


def get_config():
    config = base_config()
    config.method = "lora"
    config.size = 1024
    config.batch_size = 1
    config.grad_accum = 1
    config.rank = 16
    config.lora_alpha = 16.0
    config.lr_lora = 1e-4
    config.lr_text_lora = 5e-6
    config.lr_schedule = "constant"
    config.warmup_steps = 0
    config.steps = 500
    config.checkpoint_every = 100
    config.drop_prob = 0.0
    config.face_loss_prob = 0.0
    config.optimizer = "adamw"
    config.optimizer_options.weight_decay = 1e-4
    config.clip_norm = 1.0
    config.metrics = ("clip_t", "face_sim")
    return config
