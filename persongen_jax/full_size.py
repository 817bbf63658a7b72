"""SDXL at its own size with a method attached, in the abstract: nothing is loaded.

    abstract_model(config)
    count_trained("configs/photomaker_bg.py")

The networks are built as shapes from SDXL's own configs. Methods open CLIP's image tower by its
path; they get a file of its keys and shapes whose data are a hole: it takes no room on the disk.
"""

import functools
import json
import math
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from persongen_jax.methods import get_method
from persongen_jax.models.clip import CLIPVisionModel
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.sdxl import COMPONENTS, StableDiffusionXL, build
from persongen_jax.partition import assign_groups, leaf_paths
from persongen_jax.weights.directory import read_config
from persongen_jax.weights.loader import parameter_leaves, to_torch_shape, torch_key
from persongen_jax.weights.safetensors_file import NAMES
from persongen_jax.weights.saver import write_json

_TEXT = {
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "vocab_size": 49408,
}

# What stabilityai/stable-diffusion-xl-base-1.0's and openai/clip-vit-large-patch14's configs say,
# as far as it decides sizes.
CONFIGS = {
    "unet": {
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
    },
    "vae": {
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "force_upcast": True,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
    },
    "text_encoder": {
        **_TEXT,
        "architectures": ["CLIPTextModel"],
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
    },
    "text_encoder_2": {
        **_TEXT,
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
    },
}
IMAGE_TOWER = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "model_type": "clip_vision_model",
    "hidden_act": "quick_gelu",
    "hidden_size": 1024,
    "image_size": 224,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
}


def count_trained(file) -> dict[str, int]:
    """Learning-rate group -> number of parameters that a config at full size trains.

    ``start_from`` changes no size and is left out. Sizes of other bases do not count.
    """
    from persongen_jax.study import load_config

    config = load_config(file, {"start_from": "", "dtype": "bfloat16"})
    model, method = abstract_model(config)
    leaves = leaf_paths(model)
    counts = {}
    for path, group in assign_groups(leaves, config.trainable or method.groups).items():
        size = math.prod(leaves[path].get_value().shape)
        counts[group] = counts.get(group, 0) + size
    return counts


def network_configs(config) -> tuple[dict, dict]:
    """(config.json contents by component, the image tower's): SDXL's and CLIP's own sizes.

    Where ``config.base`` is a directory, its sizes; no weights are read there.

    Raises:
        ValueError: it is neither a directory nor empty.
    """
    base = Path(config.base)
    if not config.base:
        return CONFIGS, IMAGE_TOWER
    if not base.is_dir():
        raise ValueError(
            f"config.base={config.base} is no directory: give one, or --config.base= for SDXL's "
            "own sizes"
        )
    tower = read_config(Path(config.id_encoder or base / "image_encoder"))
    return {name: read_config(base / name) for name in COMPONENTS}, tower.get(
        "vision_config", tower
    )


def abstract_model(config, configs=CONFIGS, image_tower=IMAGE_TOWER):
    """(model, method): SDXL with the config's method attached, every leaf a ShapeDtypeStruct.

    ``configs`` and ``image_tower`` are the networks' config.json contents, SDXL's by default.
    """
    method = get_method(config.method)
    with tempfile.TemporaryDirectory(prefix="persongen-jax-") as folder:
        write_hollow_tower(Path(folder), image_tower)
        config = ConfigDict({**config, "id_encoder": folder})
        return nnx.eval_shape(functools.partial(_make, config, configs, method)), method


def _make(config, configs, method):
    dtypes = {name: jnp.dtype(config.dtype) for name in COMPONENTS}
    dtypes["vae"] = jnp.dtype(config.vae_dtype)
    parts = {
        name: build(configs, name, dtype=dtype, param_dtype=dtype)()
        for name, dtype in dtypes.items()
    }
    model = StableDiffusionXL(**parts)
    method.attach(model, config, UnusedRngs())
    return model


def write_hollow_tower(folder: Path, config: dict):
    """CLIP's image tower as config.json and a model.safetensors whose data were never written."""
    kw = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16, "rngs": UnusedRngs()}
    tower = nnx.eval_shape(lambda: CLIPVisionModel(config, with_projection=True, **kw))
    write_json(folder / "config.json", config)
    header, position = {}, 0
    for path, leaf in parameter_leaves(tower).items():
        end = position + math.prod(leaf.shape) * leaf.dtype.itemsize
        header[torch_key(path)] = {
            "dtype": NAMES[np.dtype(leaf.dtype)],
            "shape": list(to_torch_shape(path, leaf.shape)),
            "data_offsets": [position, end],
        }
        position = end
    raw = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + position)
