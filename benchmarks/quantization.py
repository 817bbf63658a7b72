"""What 8 bits cost in accuracy, and what they save: the miniature's base, and SDXL's sizes.

    python -m benchmarks.quantization --out benchmarks/results/quantization.md

The UNet's prediction for noise at several timesteps, and whole images, are compared with those of
the same weights in float32; bytes are counted from the arrays that the model holds, for SDXL from
its shapes. Nothing is timed.
"""

import argparse
import datetime
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tabulate import tabulate

from benchmarks.machine import processor
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.quantised import KINDS
from persongen_jax.models.sdxl.parts import COMPONENTS, build
from persongen_jax.models.sdxl.sizes import CONFIGS
from persongen_jax.pipeline import Pipeline
from persongen_jax.weights.quantising import QUANTISED, quantise_kernels

STORED = ("float32", "bfloat16", *KINDS)
TIMESTEPS = (1, 250, 500, 750, 999)
PROMPTS = ("a face", "a face with a red hat", "a face on a green background", "a smiling face")


def open_base(stored: str) -> Pipeline:
    """The miniature, computing in float32, with its kernels stored like this."""
    if stored in KINDS:
        return Pipeline.from_pretrained(ASSETS / "sdxl", quantize=stored)
    return Pipeline.from_pretrained(ASSETS / "sdxl", param_dtype=jnp.dtype(stored))


def predictions(pipe: Pipeline, side: int) -> np.ndarray:
    """[timesteps, prompts, h, w, 4] of the UNet, for the same noise and prompts each time."""
    from persongen_jax.diffusion.conditioning import Conditioning, TokenStream

    unet, width = pipe.model.unet, pipe.model.unet.config["cross_attention_dim"]
    width = max(width) if isinstance(width, (tuple, list)) else width
    rng, rows = np.random.default_rng(0), len(PROMPTS)
    x = rng.standard_normal((rows, side, side, 4)).astype(np.float32)
    ids = np.stack([pipe.base.tokenizers.encode(prompt) for prompt in PROMPTS], 1)
    conditioning = pipe.model.conditioner()
    del conditioning, Conditioning, TokenStream, width, unet, x, ids
    raise NotImplementedError
