"""PhotoMaker in the miniature world: minutes on two CPU cores, nothing to download.

    python -m persongen_jax.train --config configs/mini/photomaker.py

The base, CLIP, the face nets and the people are the project's own (persongen_jax/assets,
data_pipeline/people.py). Rates are higher and runs shorter than at full size, because the networks
are small and the identity is learned from scratch.
"""

from pathlib import Path

import persongen_jax
from configs.base import get_config as base_config

ASSETS = Path(persongen_jax.__file__).parent / "assets"
# Variations that training does not contain.
UNSEEN = "pictures=3&first_picture=1000000&framing=portrait"


def get_config():
    config = base_config()
    config.base = str(ASSETS / "sdxl")
    config.id_encoder = str(ASSETS / "clip")
    judges = ASSETS / "judges"  # networks that no method reads
    config.clip = str(judges / "clip")
    config.face_net = str(judges / "face_net" / "model.safetensors")
    config.face_detector = f"keypoints:{judges / 'face_detector'}"
    config.pose_net = f"keypoints:{judges / 'face_detector'}"
    config.data = "people:in_train?identities=1000&pictures=12&framing=portrait"
    config.loader = "memory"
    config.cpu_devices = 2  # two share the batch: the layers are too small for two cores each
    config.dtype = "float32"
    config.size = 64

    config.batch_size = 32
    config.rank = 16
    # At CLIP's own scale a run learns as surely, and half as fast.
    config.id_gain = 6.0
    config.lora_alpha = 16.0
    config.lr_projections = 1e-3
    config.lr_fuse_module = 1e-3
    config.lr_lora = 3e-4
    # Rates of what other methods train; they share the rest of the file.
    config.lr_background = 3e-4
    config.lr_body = 3e-4
    config.lr_identity = 3e-4
    config.lr_id_norm = 1e-3
    config.lr_schedule = "cosine"
    config.warmup_steps = 50
    config.clip_norm = 1.0
    # A face affects the loss only where noise does not dominate: at SNR below 1. The rest of the
    # loss is almost all noise for the gradient (300 steps with 1, large faces and the rates above:
    # Face-Sim 0.33; 600 steps with equal weights, all framings and lr_lora 1e-3: 0.10, same seed).
    config.min_snr_gamma = 1.0
    config.steps = 400
    config.checkpoint_every = 200
    config.tensorboard = True

    config.validation_every = 200
    config.validate_in_train = f"people:in_train?identities=10&{UNSEEN}"
    config.validate_out_of_train = f"people:out_of_train?identities=10&{UNSEEN}"
    config.validate_out_of_domain = f"people:out_of_domain?identities=7&{UNSEEN}"
    config.validation_gallery = f"people:out_of_train?identities=100&{UNSEEN}"
    config.validation_prompts = str(Path(__file__).parent / "prompts.json")
    config.validation_images = 1
    config.validation_steps = 20
    config.validation_merge_step = 2
    config.validation_guidance = 4.0
    config.validation_negative_prompt = ""  # the miniature's vocabulary lacks the default's words
    config.validation_batch = 16
    return config
