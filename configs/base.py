"""Shared defaults: PhotoMaker on SDXL at 512, as the thesis' baseline trains it (section 5.1.8).

    python -m persongen_jax.train --config configs/base.py --config.base=/path/to/sdxl \\
        --config.id_encoder=/path/to/clip-vit-large-patch14 --config.data=/path/to/photographs \\
        --workdir runs/photomaker
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.method = "photomaker"

    # What is opened: a diffusers-format SDXL directory, a CLIP image tower ("": the base's
    # image_encoder folder), a folder of photographs with a manifest.jsonl.
    config.base = ""
    config.id_encoder = ""
    config.data = ""
    config.loader = "tf_data"  # or "memory": no TensorFlow, one thread

    # Computation. Frozen weights rest in ``dtype``; what is trained rests in float32.
    config.dtype = "bfloat16"
    config.vae_dtype = "float32"

    # Data: the side of the target in pixels, the word that marks the class word in captions.
    config.size = 512
    config.trigger_word = "img"
    config.batch_size = 24  # over all devices

    # The method's parts. ``trainable`` replaces the method's own (path pattern, group) rows.
    config.rank = 64
    config.lora_alpha = 64.0
    config.trainable = ()

    # The objective.
    config.face_loss_prob = 0.5  # per example: the loss over the face box only
    config.drop_prob = 0.1  # per example: no condition at all

    # The optimizer: Adam, a learning rate for each group, linear warm-up, then constant.
    config.lr_projections = 1e-5
    config.lr_fuse_module = 1e-5
    config.lr_lora = 1e-5
    config.lr_id_encoder = 1e-5
    config.lr_background = 1e-5
    config.warmup_steps = 1000
    config.adam_b1 = 0.9
    config.adam_b2 = 0.999

    # The run.
    config.seed = 42
    config.steps = 20_000
    config.log_every = 10
    config.checkpoint_every = 1000
    config.keep_checkpoints = 3
    return config
