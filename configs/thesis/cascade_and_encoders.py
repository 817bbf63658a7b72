"""The target method as the thesis plans to train it (3.3.3): with layers of the encoders.

    python -m persongen_jax.train --config configs/thesis/cascade_and_encoders.py \\
        --config.base=/path/to/sdxl --config.id_encoder=/path/to/clip-vit-large-patch14 \\
        --config.data=/path/to/photographs --config.start_from=/path/to/photomaker-v1.bin

"Some layers of the text and visual encoders" are here the last two of each: of the text towers
those that SDXL reads, so that the first tower's last layer is none of them.
"""

from configs.cascade import get_config as cascade_config
from configs.thesis import LAST_LAYERS
from persongen_jax.methods.thesis.cascade import Cascade


def get_config():
    config = cascade_config()
    config.trainable = (*Cascade.groups, *LAST_LAYERS)
    return config
