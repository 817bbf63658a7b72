"""SDXL and its method as shapes only, with matching batches: no file is opened.

Used for counting parameters, ahead-of-time compilation, and speed measurements on random weights
(aot, bench). ``config.base`` sets the sizes: empty for SDXL's own, a directory for its configs'
(weights are not read), or a size of weights/random_base.py ("tiny", "mid").
"""

import functools
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from persongen_jax.diffusion.schedule import NoiseSchedule
from persongen_jax.diffusion.scheduler_config import scheduler_of_run
from persongen_jax.losses.decoded import DecodedLosses
from persongen_jax.methods import get_method
from persongen_jax.methods.base import Method, Parts
from persongen_jax.models.encoders.clip import CLIPVisionModel
from persongen_jax.models.faces.iresnet import R50, IResNet
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.quantised import check_kind
from persongen_jax.models.sdxl.parts import COMPONENTS, StableDiffusionXL, build
from persongen_jax.models.sdxl.sizes import CONFIGS, IMAGE_TOWER
from persongen_jax.systems.drawn_weights import fill
from persongen_jax.training.partition import quantise_frozen
from persongen_jax.weights.files.directory import read_config
from persongen_jax.weights.files.safetensors_file import NAMES
from persongen_jax.weights.formats.recognisers import SFACE
from persongen_jax.weights.formats.sdxl.loading import SDXLBase
from persongen_jax.weights.loader import parameter_leaves, to_torch_shape, torch_key
from persongen_jax.weights.quantising import base_layers
from persongen_jax.weights.random_base import SCHEDULER, SIZES, make_configs
from persongen_jax.weights.saver import write_json

VOCABULARY = 49408  # number of ids of CLIP's tokenizers


class ShapeTokenizers:
    """Replaces tokenizers where only their length matters; every text has the same ids."""

    def __init__(self, max_length: int):
        self.max_length, self.words = max_length, {}

    def encode(self, prompt: str) -> np.ndarray:
        ids = np.zeros((2, self.max_length), np.int32)
        ids[:, -1] = VOCABULARY - 1
        return ids

    def ids(self, text: str) -> tuple[list[int], list[int]]:
        return [], []


def network_configs(config: ConfigDict) -> tuple[dict, dict]:
    """(config.json contents by component, the image tower's config).

    Raises:
        ValueError: ``config.base`` is neither empty, nor a size, nor a directory.
    """
    base = Path(config.get("base_config") or config.base)
    if not config.base:
        return CONFIGS, IMAGE_TOWER
    if config.base in SIZES:
        configs = make_configs(config.base, VOCABULARY)
        return configs, configs.pop("image_encoder")
    if not base.is_dir():
        raise ValueError(
            f"config.base={config.base} is not a directory: give one, or --config.base= for SDXL's "
            "own sizes"
        )
    tower = read_config(Path(config.id_encoder or base / "image_encoder"))
    return {name: read_config(base / name) for name in COMPONENTS}, tower.get(
        "vision_config", tower
    )


def abstract_base(config: ConfigDict) -> tuple[SDXLBase, Method, DecodedLosses]:
    """(SDXLBase, method, losses): with the config's attached, every leaf a ShapeDtypeStruct.

    What a run starts from does not change sizes and is not opened. Methods open CLIP's image tower
    by its path, so they get a sparse file with its keys and shapes that takes no room on the disk.
    """
    check_kind(config.quantize, "config.quantize")
    configs, image_tower = network_configs(config)
    method = get_method(config.method)
    length = configs["text_encoder"]["max_position_embeddings"]
    tokenizers: Any = ShapeTokenizers(length)
    with tempfile.TemporaryDirectory(prefix="persongen-jax-") as folder:
        write_empty_tower(Path(folder), image_tower)
        own = {"id_encoder": folder, "start_from": "", "controlnet": ""}
        recogniser = config.get("face_encoder")
        if recogniser != SFACE and not (recogniser and Path(recogniser).exists()):
            own["face_encoder"] = str(Path(folder) / "face_encoder.safetensors")
            write_empty(Path(own["face_encoder"]), lambda: IResNet(R50, **_traced()))
        config = ConfigDict({**config, **own})
        scheduler = scheduler_of_run(config, SCHEDULER)
        decoded = DecodedLosses(config, NoiseSchedule.from_config(scheduler), abstract=True)
        make = functools.partial(_make, config, configs, method, tokenizers, decoded)
        model = nnx.eval_shape(make)
    return SDXLBase(model, tokenizers, configs, scheduler, {}, config.base), method, decoded


def _make(config, configs, method, tokenizers, decoded):
    dtypes = {name: jnp.dtype(config.dtype) for name in COMPONENTS}
    dtypes["vae"] = jnp.dtype(config.vae_dtype)
    parts = {
        name: build(configs, name, dtype=dtype, param_dtype=dtype)()
        for name, dtype in dtypes.items()
    }
    model = StableDiffusionXL(**parts)
    layers = base_layers(model)
    method.attach(Parts(model, tokenizers), config, UnusedRngs())
    if config.quantize:
        quantise_frozen(model, config.quantize, layers, config.trainable or method.groups)
    decoded.attach(model)
    return model


def write_empty_tower(folder: Path, config: dict) -> None:
    """Write CLIP's image tower as config.json and a sparse model.safetensors without data."""
    write_json(folder / "config.json", config)
    make = functools.partial(CLIPVisionModel, config, with_projection=True)
    write_empty(folder / "model.safetensors", lambda: make(**_traced()))


def _traced() -> dict[str, Any]:
    return {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16, "rngs": UnusedRngs()}


def write_empty(file: Path, make: Callable[[], nnx.Module]) -> None:
    """Write a network's file with its keys and shapes, sparse, without data."""
    header, position = {}, 0
    for path, leaf in parameter_leaves(nnx.eval_shape(make)).items():
        end = position + math.prod(leaf.shape) * leaf.dtype.itemsize
        header[torch_key(path)] = {
            "dtype": NAMES[np.dtype(leaf.dtype)],
            "shape": list(to_torch_shape(path, leaf.shape)),
            "data_offsets": [position, end],
        }
        position = end
    raw = json.dumps(header).encode()
    with open(file, "wb") as out:
        out.write(len(raw).to_bytes(8, "little") + raw)
        out.truncate(8 + len(raw) + position)


# ---- A batch for measurements --------------------------------------------------------------------


def draw_batch(batch: dict, size: int, vocabulary: int = VOCABULARY) -> dict:
    """A batch of these ShapeDtypeStructs on the first device, with plausible values.

    Args:
        batch: System.abstract_batch's; nested.
        size: of the target in pixels. vocabulary: number of ids that the text towers know.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(batch)
    filled = [
        draw_input(i, path[-1].key, leaf, size, vocabulary) for i, (path, leaf) in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, filled)


def draw_input(
    number: int, name: str, shape: jax.ShapeDtypeStruct, size: float, vocabulary: int
) -> jax.Array:
    """One entry of a batch by its name; unknown names are drawn around 0."""
    dims = shape.shape
    if name == "class_tokens_mask":
        return jnp.zeros(dims, bool).at[:, 5:9].set(True)
    if name == "face_box":
        box = jnp.array([size / 4, size / 8, 3 * size / 4, 5 * size / 8])
        return jnp.broadcast_to(box, dims).astype(shape.dtype)
    if name == "time_ids":
        ids = jnp.array([size, size, 0, 0, size, size])
        return jnp.broadcast_to(ids, dims).astype(shape.dtype)
    if shape.dtype == bool or name == "example_weight":
        return jnp.ones(dims, shape.dtype)
    if jnp.issubdtype(shape.dtype, jnp.integer):
        some = min(400, vocabulary - 2)
        ids = 1 + jnp.arange(math.prod(dims), dtype=shape.dtype).reshape(dims) % some
        return ids.at[..., -1].set(vocabulary - 1)
    return fill(shape.dtype, dims, 10_000 + number, 0.0, 0.5)
