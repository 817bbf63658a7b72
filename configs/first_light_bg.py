"""first_light.py with the background branch: the thesis' final method on a tiny random SDXL.

    python -m data_pipeline.sample_photos --out data/sample_photos
    python -m persongen_jax.weights.random_base --out weights/tiny-sdxl
    python -m persongen_jax.train --config configs/first_light_bg.py --workdir runs/first_light_bg
    python -m persongen_jax.generate --base weights/tiny-sdxl \\
        --method-weights runs/first_light_bg --reference data/sample_photos/astronaut.png \\
        --prompt "a photo of a woman img" --background "a beach at sunset"
"""

from configs.first_light import get_config as first_light_config


def get_config():
    config = first_light_config()
    config.method = "photomaker_bg"
    config.lr_background = 1e-3
    return config
