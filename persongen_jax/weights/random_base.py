"""An SDXL directory with random weights, to try everything without a download.

    python -m persongen_jax.weights.random_base --out weights/tiny-sdxl
    python -m persongen_jax.weights.random_base --out weights/sdxl --size sdxl --dtype float16

It has every part of a real one (and a CLIP image tower in ``image_encoder/``) in diffusers' format,
so all commands run on it; its images are noise. "sdxl" has the published sizes: 7.5 GB in float16.
"""

import argparse
import copy
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from data_pipeline.prompts import Tokenizers
from persongen_jax.cli import command
from persongen_jax.models.encoders.clip import CLIPVisionModel
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.sdxl.parts import COMPONENTS, StableDiffusionXL, build
from persongen_jax.models.sdxl.sizes import CONFIGS, IMAGE_TOWER
from persongen_jax.weights.files.source import TensorSource
from persongen_jax.weights.formats.sdxl.loading import SDXLBase, save_sdxl
from persongen_jax.weights.loader import (
    M,
    load_module,
    parameter_leaves,
    to_torch_shape,
    torch_key,
)
from persongen_jax.weights.saver import save_module, write_json
from persongen_jax.weights.tiny_tokenizer import SDXL_PAD_TOKENS, write_tiny_tokenizer

# The values of SDXL's own scheduler_config.json.
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}

# Per size: UNet channels, latent side, text widths, VAE channels, image tower. "mid" is for
# benchmarks: its UNet has 275 million parameters.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "channels": [32, 64, 64],
        "transformer_layers": [1, 1, 2],
        "sample_size": 8,
        "text": (32, 64),
        "vae": [16, 32, 32, 32],
        "vision": (64, 32, 8),
    },
    "mid": {
        "channels": [128, 256, 512],
        "transformer_layers": [1, 2, 6],
        "sample_size": 32,
        "text": (256, 512),
        "vae": [32, 64, 128, 128],
        "vision": (256, 64, 16),
    },
}
PUBLISHED = "sdxl"  # SDXL's own sizes, with CLIP's vocabulary
DTYPES = ("float32", "float16", "bfloat16")


def make_configs(size: str, vocab_size: int) -> dict[str, dict]:
    """config.json contents of every component, as diffusers and transformers write them."""
    if size == PUBLISHED:
        return copy.deepcopy({**CONFIGS, "image_encoder": IMAGE_TOWER})
    spec = SIZES[size]
    groups = 32 if size == "mid" else 8
    first, second = spec["text"]
    vision_width, image_size, patch_size = spec["vision"]
    time_dim = 32
    unet = {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": time_dim,
        "attention_head_dim": [max(1, width // 64) for width in spec["channels"]],
        "block_out_channels": spec["channels"],
        "cross_attention_dim": first + second,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": groups,
        "projection_class_embeddings_input_dim": 6 * time_dim + second,
        "sample_size": spec["sample_size"],
        "transformer_layers_per_block": spec["transformer_layers"],
        "use_linear_projection": True,
    }
    levels = len(spec["vae"])
    vae = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": spec["vae"],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "force_upcast": True,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 1 if size == "tiny" else 2,
        "norm_num_groups": groups,
        "sample_size": spec["sample_size"] * 2 ** (levels - 1),
        "scaling_factor": 0.13025,
    }
    text = {
        "model_type": "clip_text_model",
        "num_hidden_layers": 2,
        "max_position_embeddings": 77,
        "vocab_size": vocab_size,
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "layer_norm_eps": 1e-5,
    }

    def tower(width, **more):
        sizes = {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_attention_heads": max(1, width // 32),
        }
        return {**text, **sizes, **more}

    return {
        "unet": unet,
        "vae": vae,
        "text_encoder": tower(
            first, architectures=["CLIPTextModel"], hidden_act="quick_gelu", projection_dim=first
        ),
        "text_encoder_2": tower(
            second,
            architectures=["CLIPTextModelWithProjection"],
            hidden_act="gelu",
            projection_dim=second,
        ),
        "image_encoder": {
            "architectures": ["CLIPVisionModelWithProjection"],
            "model_type": "clip_vision_model",
            "hidden_act": "quick_gelu",
            "hidden_size": vision_width,
            "image_size": image_size,
            "intermediate_size": 4 * vision_width,
            "layer_norm_eps": 1e-5,
            "num_attention_heads": max(1, vision_width // 32),
            "num_channels": 3,
            "num_hidden_layers": 2,
            "patch_size": patch_size,
            "projection_dim": first,
        },
    }


class RandomWeights(TensorSource):
    """Seeded random tensors with a module's keys and shapes: PyTorch's initial values, in numpy."""

    def __init__(self, build: Callable[[], nnx.Module], seed: int):
        leaves = parameter_leaves(nnx.eval_shape(build))
        self._shapes = {
            torch_key(path): to_torch_shape(path, x.shape) for path, x in leaves.items()
        }
        self._rng = np.random.default_rng(seed)

    def keys(self) -> list[str]:
        return list(self._shapes)

    def info(self, key: str) -> tuple[np.dtype, tuple[int, ...]]:
        return np.dtype(np.float32), self._shapes[key]

    def read(self, key: str) -> np.ndarray:
        shape = self._shapes[key]
        if len(shape) == 1 and "norm" in key:
            return np.full(shape, float(key.endswith(".weight")), np.float32)
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
        values = self._rng.uniform(-1, 1, shape) / math.sqrt(fan_in)
        return values.astype(np.float32)

    def describe(self) -> str:
        return "random weights"

    def close(self) -> None:
        """Does nothing: no file is open."""


def random_module(build: Callable[[], M], seed: int) -> M:
    """The module that ``build`` makes, with :class:`RandomWeights`."""
    return load_module(build, RandomWeights(build, seed))


def write_random_base(
    folder: str | os.PathLike, *, size: str = "tiny", seed: int = 0, dtype: DTypeLike = jnp.float32
) -> None:
    """Write the directory; the same seed gives the same bytes.

    Args:
        folder: created if necessary.
        size: of ``SIZES``, or ``PUBLISHED``.
        seed: of the weights.
        dtype: in which they are stored. All of them are in memory at once.
    """
    folder = Path(folder)
    vocab_size = 0
    for name, pad_token in zip(("tokenizer", "tokenizer_2"), SDXL_PAD_TOKENS, strict=True):
        vocab_size = write_tiny_tokenizer(folder / name, pad_token)
    configs = make_configs(size, vocab_size)
    vision_config = configs.pop("image_encoder")
    dtypes = {"dtype": dtype, "param_dtype": dtype}
    vision = random_module(
        lambda: CLIPVisionModel(vision_config, with_projection=True, rngs=UnusedRngs(), **dtypes),
        seed + len(COMPONENTS),
    )
    save_module(vision, folder / "image_encoder", vision_config, file_name="model.safetensors")
    parts = {
        name: random_module(build(configs, name, **dtypes), seed + i)
        for i, name in enumerate(COMPONENTS)
    }
    save_sdxl(
        SDXLBase(
            model=StableDiffusionXL(**parts),
            tokenizers=Tokenizers.from_pretrained(folder),
            configs=configs,
            scheduler_config=SCHEDULER,
            model_index={},
            path=str(folder),
        ),
        folder,
    )
    write_json(folder / "random_base.json", {"size": size, "seed": seed})


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--size", choices=(*SIZES, PUBLISHED), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the stored weights")
    args = parser.parse_args(argv)
    write_random_base(args.out, size=args.size, seed=args.seed, dtype=jnp.dtype(args.dtype))
    print(f"wrote a random {args.size} SDXL directory to {args.out}")


if __name__ == "__main__":
    main()
