"""The published ID encoder, and the small base with a method that has PhotoMaker's parts."""

import numpy as np
import torch
from flax import nnx
from ml_collections import ConfigDict
from transformers import CLIPVisionModelWithProjection

from persongen_jax.methods import get_method
from persongen_jax.methods.base import Parts
from persongen_jax.weights.formats.sdxl.loading import load_sdxl
from tests.methods.test_photomaker import TorchFuse

TOLERANCE = 1e-5

RANK = 4


class TorchIDEncoder(CLIPVisionModelWithProjection):
    """The published class: CLIP's image tower, a second head, the fuse module."""

    def __init__(self, config, widths):
        super().__init__(config)
        self.visual_projection_2 = torch.nn.Linear(config.hidden_size, widths[1], bias=False)
        self.fuse_module = TorchFuse(sum(widths))

    def embed(self, pixels):
        pooled = self.vision_model(pixels)[1]
        return torch.cat([self.visual_projection(pooled), self.visual_projection_2(pooled)], -1)


def attach(small_base, method="photomaker", **settings):
    base = load_sdxl(small_base)
    config = {"base": str(small_base), "id_encoder": "", "rank": RANK, "lora_alpha": RANK}
    config = ConfigDict({**config, "dtype": "float32", **settings})
    get_method(method).attach(Parts(base.model, base.tokenizers), config, nnx.Rngs(0))
    return base.model


def same(found, wanted):
    """Equal as float32, which represents every bfloat16."""
    return np.array_equal(np.asarray(found, np.float32), np.asarray(wanted, np.float32))
