"""The judge of each data set: a classifier of its attributes, evaluated on held-out images.

    python -m persongen_jax.train --config configs/attributes/classifier.py:digits \\
        --workdir runs/attributes/digits_classifier

The data set follows the colon: digits, drawn_faces, mnist or celeb_a. A plain folder:
--config configs/attributes/classifier.py:celeb_a --config.data=FOLDER.
"""

from persongen_jax.systems.attribute_classifier import Classifier

# Size of the images, channels of the levels, steps.
SETS = {
    "digits": (8, (32, 64), 1500),
    "drawn_faces": (32, (16, 32, 64, 96), 1200),
    "mnist": (28, (32, 64, 128), 4000),
    "celeb_a": (64, (32, 64, 128, 128), 12_000),
}


def get_config(data="digits"):
    if data not in SETS:
        raise ValueError(f"classifier.py:{data}: there are {', '.join(SETS)}")
    config = Classifier.defaults()
    config.system = "attribute_classifier"
    config.data = data
    config.size, config.widths, config.steps = SETS[data]
    if data in ("digits", "mnist"):
        config.channels = 1
    config.batch_size = 128
    config.optimizer, config.optimizer_options = "adamw", {"weight_decay": 0.01}
    config.lr_schedule, config.warmup_steps, config.clip_norm = "cosine", 50, 1.0
    config.log_every, config.checkpoint_every = 50, 500
    config.validation_every = config.steps
    config.seed = 7  # differs from the generator's
    return config
