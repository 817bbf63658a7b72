"""The tiny base with the method that holds an IP-Adapter, and the variants' widths."""

from flax import nnx
from ml_collections import ConfigDict

from persongen_jax import models
from persongen_jax.methods.base import Parts
from persongen_jax.methods.published.ip_adapter import IPAdapter
from persongen_jax.weights.formats.sdxl.loading import load_sdxl

FACE_NET = f"{models.__path__[0]}/../assets/face_net"

# Feature widths of the tiny base's image encoder (and the small recogniser) by variant.
FEATURES = {"base": 32, "plus": 64, "faceid": 128, "faceid-plus": 128}

RANK = 4


def attach(tiny_base, method=None, **settings):
    base = load_sdxl(tiny_base)
    config = {"base": str(tiny_base), "id_encoder": "", "dtype": "float32"}
    config["face_encoder"] = FACE_NET
    method = IPAdapter() if method is None else method
    method.attach(
        Parts(base.model, base.tokenizers), ConfigDict({**config, **settings}), nnx.Rngs(0)
    )
    return base.model, method
