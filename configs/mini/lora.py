"""LoRA on six pictures of one drawn stranger: DreamBooth-LoRA in the miniature world.

python -m persongen_jax.train --config configs/mini/lora.py
"""

from configs.mini.photomaker import get_config as photomaker_config

PERSON = "people:out_of_train?identities=1&framing=portrait"


def get_config():
    config = photomaker_config()
    config.method = "lora"
    config.token = "ohwx"
    config.data = f"{PERSON}&pictures=6"
    config.batch_size = 8
    config.rank = 16
    config.lora_alpha = 16.0
    # At 1e-3 pictures fade: 40 images of a person by prompts that training did not show, with
    # guidance 4, have rank-1 0.70 among ten after 600 steps, and 0.98 at this rate.
    config.lr_lora = 3e-4
    config.lr_text_lora = 1e-4
    config.lr_schedule = "constant"
    config.warmup_steps = 10
    config.steps = 300  # after 600, two people's images were as like them as after 300
    config.drop_prob = 0.0
    config.face_loss_prob = 0.5
    # Class images as the base draws them by itself: guided ones are too vivid to learn from.
    config.class_guidance = 1.0
    config.validate_in_train = f"{PERSON}&pictures=3&first_picture=1000000"
    config.validate_out_of_train = ""
    config.validate_out_of_domain = ""
    config.validation_every = 150
    # More exaggerates what was learned of a person, until faces drown in hair.
    config.validation_guidance = 2.0
    return config
