"""Reads and writes SDXL directories in diffusers' format, and reads single-file checkpoints.

base = load_sdxl("/path/to/stable-diffusion-xl-base-1.0", dtype=jnp.bfloat16)
base.model.unet, base.tokenizers, base.scheduler_config
save_sdxl(base, "/path/to/copy")
"""

import functools
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from data_pipeline.prompts import Tokenizers
from persongen_jax.models.quantised import check_kind
from persongen_jax.models.sdxl.parts import COMPONENTS, StableDiffusionXL, build
from persongen_jax.parallel.sharding import Shardings
from persongen_jax.weights.errors import BadConfig, WeightsError
from persongen_jax.weights.formats.sdxl.opening import open_base
from persongen_jax.weights.loader import check_keys, fill_module, parameter_leaves
from persongen_jax.weights.quantising import QUANTISED, check_not_quantised, quantise_kernels
from persongen_jax.weights.saver import save_module, write_json


@dataclass
class SDXLBase:
    """A loaded base: the model, its tokenizers and every config that came with it.

    ``path`` is the opened path; ``folder`` the directory of its configs, "" for ``path`` itself.
    """

    model: StableDiffusionXL
    tokenizers: Tokenizers
    configs: dict[str, dict]
    scheduler_config: dict
    model_index: dict
    path: str
    folder: str = ""


def load_sdxl(
    path: str | os.PathLike,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike | None = None,
    vae_dtype: DTypeLike = jnp.float32,
    variant: str | None = None,
    config: str | os.PathLike | None = None,
    unet: str | os.PathLike | None = None,
    vae: str | os.PathLike | None = None,
    text_encoders: str | os.PathLike | None = None,
    prediction_type: str | None = None,
    check: Callable[[dict], Any] | None = None,
    shardings: Shardings | None = None,
    quantize: str = "",
) -> SDXLBase:
    """Open a diffusers-format SDXL directory, or a single-file checkpoint together with one.

    Everything is checked by headers and configs before the first weight is read. ``warnings.warn``
    reports what was ignored, filled in, or decided between a file and its config.

    Args:
        path: the directory; or a file (.safetensors, .ckpt): a whole checkpoint, or a UNet alone.
        dtype: of the computation in UNet and text towers; param_dtype: of their stored weights
            (default: dtype).
        vae_dtype: of the VAE, float32 by default because SDXL's own overflows in half precision;
            the fp16-fix VAE works in bfloat16.
        variant: "fp16" to read ``*.fp16.safetensors``.
        config: for a single file, the directory that has its configs and tokenizers; its weights
            fill in for parts that the file lacks.
        unet: a file or a component's directory that takes the place of the base's own.
        vae: likewise.
        text_encoders: likewise a directory with ``text_encoder`` and ``text_encoder_2``, a whole
            checkpoint, or one or both in separate files (in one directory).
        prediction_type: what the UNet predicts, overriding files and configs.
        check: called with the scheduler's config before any weight is read; its errors propagate.
        shardings: as in :func:`~persongen_jax.weights.loader.load_module`.
        quantize: "int8" or "fp8": hold the kernels of UNet and text towers in 8 bits, for inference
            (weights/quantising.py). Training says itself which are frozen.

    Raises:
        MissingFile: the path, or a part of the base, does not exist.
        WeightsError: any other fault of the files.
    """
    param_dtype = dtype if param_dtype is None else param_dtype
    for name, given in (("dtype", dtype), ("param_dtype", param_dtype), ("vae_dtype", vae_dtype)):
        if not jnp.issubdtype(given, jnp.floating):
            raise ValueError(f"{name}={jnp.dtype(given).name}: give bfloat16, float16 or float32")
    check_kind(quantize, "quantize")
    dtypes = {name: {"dtype": dtype, "param_dtype": param_dtype} for name in COMPONENTS}
    dtypes["vae"] = {"dtype": vae_dtype, "param_dtype": vae_dtype}
    with open_base(
        path,
        config=config,
        unet=unet,
        vae=vae,
        text_encoders=text_encoders,
        variant=variant,
        prediction_type=prediction_type,
    ) as files:
        if check is not None:
            _check_schedule(check, files)
        models = {name: _prepare(files, name, dtypes[name]) for name in COMPONENTS}
        tokenizers = Tokenizers.from_pretrained(files.folder)
        for note in files.notes:
            warnings.warn(note, stacklevel=2)
        for name in COMPONENTS:
            source = files.sources[name]
            models[name] = fill_module(models[name], source, shardings=shardings)
            if quantize and name in QUANTISED:
                quantise_kernels(models[name], quantize)
            source.close()
    return SDXLBase(
        model=StableDiffusionXL(**models),
        tokenizers=tokenizers,
        configs=files.configs,
        scheduler_config=files.scheduler_config,
        model_index=files.model_index,
        path=str(path),
        folder=str(files.folder),
    )


def _check_schedule(check, files):
    try:
        check(files.scheduler_config)
    except ValueError as error:
        file = files.folder / "scheduler" / "scheduler_config.json"
        raise ValueError(f"{error} (the base's: {file})") from error


def _prepare(files, name: str, dtypes: dict):
    """The component's module as shapes, its keys and shapes compared with the file's."""
    source = files.sources[name]
    try:
        module = nnx.merge(*_in_shapes(name, json.dumps(files.configs[name]), **dtypes))
        check_keys(parameter_leaves(module), source)
        return module
    except WeightsError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError) as error:
        said = " ".join(str(error).split())[:300]
        raise BadConfig(
            f"{files.homes[name] / 'config.json'}: no network that is known here can be built by "
            f"it ({said}); if it is not the config.json of {source.describe()}, take that"
        ) from error


@functools.lru_cache(maxsize=8)
def _in_shapes(name: str, config: str, *, dtype, param_dtype):
    """The component's graph and shapes: tracing them takes longer than to read a small file."""
    make = build({name: json.loads(config)}, name, dtype=dtype, param_dtype=param_dtype)
    return nnx.split(nnx.eval_shape(make))


FILE_NAMES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}

MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def save_sdxl(base: SDXLBase, folder: str | os.PathLike) -> None:
    """Write a directory that ``diffusers.StableDiffusionXLPipeline.from_pretrained`` opens.

    Weights are written in their stored dtype. Adapters are not included: merge them first, or save
    them separately.
    """
    folder = Path(folder)
    check_not_quantised(base.model, "the base cannot be saved")
    for name in COMPONENTS:
        save_module(
            getattr(base.model, name), folder / name, base.configs[name], file_name=FILE_NAMES[name]
        )
    base.tokenizers.tokenizer.save_pretrained(str(folder / "tokenizer"))
    base.tokenizers.tokenizer_2.save_pretrained(str(folder / "tokenizer_2"))
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(folder / "scheduler" / "scheduler_config.json", base.scheduler_config)
    index = {**MODEL_INDEX, **base.model_index}
    index["scheduler"] = ["diffusers", base.scheduler_config["_class_name"]]
    write_json(folder / "model_index.json", index)
