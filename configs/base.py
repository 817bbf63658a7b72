"""Shared defaults: PhotoMaker on SDXL at 512, as the thesis' baseline trains it (section 5.1.8).

    python -m persongen_jax.train --config configs/base.py --config.base=/path/to/sdxl \\
        --config.id_encoder=/path/to/clip-vit-large-patch14 --config.data=/path/to/photographs \\
        --workdir runs/photomaker

Every key is explained in persongen_jax/config.py (keys of any run), systems/diffusion.py (the
objective), systems/sdxl_config.py (the base, the method, validation).
"""

from persongen_jax.systems.sdxl_config import sdxl_defaults as get_config

__all__ = ["get_config"]
