"""A PhotoMaker file to start from."""

import jax
from flax import nnx
from ml_collections import ConfigDict

from persongen_jax.methods import get_method
from persongen_jax.methods.base import Parts
from persongen_jax.models.lora import lora_layers
from persongen_jax.weights.formats.photomaker import save_photomaker
from persongen_jax.weights.formats.sdxl.loading import load_sdxl


def write_random_photomaker(base, path):
    """For the SDXL directory ``base``; of rank 3, with a LoRA that has an effect."""
    loaded = load_sdxl(base)
    model = loaded.model
    config = {"base": str(base), "id_encoder": "", "rank": 3, "lora_alpha": 3.0}
    config = ConfigDict({**config, "dtype": "float32"})
    get_method("photomaker").attach(Parts(model, loaded.tokenizers), config, nnx.Rngs(7))
    for i, layer in enumerate(lora_layers(model.unet).values()):
        noise = jax.random.normal(jax.random.key(i), layer.lora.up.shape)
        layer.lora.up.set_value(0.3 * noise)
    save_photomaker(model, path)
