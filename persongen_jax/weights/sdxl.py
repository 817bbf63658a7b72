"""SDXL directories in diffusers' format, and single-file checkpoints: read and written.

base = load_sdxl("/path/to/stable-diffusion-xl-base-1.0", dtype=jnp.bfloat16)
base.model.unet, base.tokenizers, base.scheduler_config
save_sdxl(base, "/path/to/copy")
"""

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp

from persongen_jax.models.sdxl import COMPONENTS, StableDiffusionXL, build
from persongen_jax.prompts import Tokenizers
from persongen_jax.weights.directory import open_component, read_config, read_json
from persongen_jax.weights.errors import BadConfig, MissingFile
from persongen_jax.weights.keys import normalise_attention, normalise_clip_text
from persongen_jax.weights.loader import load_module
from persongen_jax.weights.original_sdxl import split_checkpoint
from persongen_jax.weights.safetensors_file import TensorFile
from persongen_jax.weights.saver import save_module, write_json

NORMALISE = {
    "unet": lambda source: source,
    "vae": normalise_attention,
    "text_encoder": normalise_clip_text,
    "text_encoder_2": normalise_clip_text,
}


@dataclass
class SDXLBase:
    """A loaded base: the model, its tokenizers and every config that came with it."""

    model: StableDiffusionXL
    tokenizers: Tokenizers
    configs: dict[str, dict]
    scheduler_config: dict
    model_index: dict
    path: str


def load_sdxl(
    path,
    *,
    dtype=jnp.float32,
    param_dtype=None,
    vae_dtype=jnp.float32,
    variant: str | None = None,
    config=None,
    shardings=None,
) -> SDXLBase:
    """Open a diffusers-format SDXL directory, or a single-file checkpoint beside one.

    Args:
        path: the directory, or a ``*.safetensors`` file with the original (sgm) names.
        dtype: of the computation in UNet and text towers; param_dtype: of their stored weights
            (default: dtype).
        vae_dtype: of the VAE, float32 by default because SDXL's own overflows in half precision;
            the fp16-fix VAE works in bfloat16.
        variant: "fp16" to read ``*.fp16.safetensors``.
        config: for a single file, the directory that has its configs and tokenizers; weights are
            not needed there.
        shardings: as in :func:`~persongen_jax.weights.loader.load_module`.

    Raises:
        MissingFile: the path, or a part of the directory, is not there.
        WeightsError: any other fault of the files.
    """
    path = Path(path)
    folder = _config_folder(path, config)
    configs = {name: read_config(folder / name) for name in COMPONENTS}
    param_dtype = dtype if param_dtype is None else param_dtype
    dtypes = {name: {"dtype": dtype, "param_dtype": param_dtype} for name in COMPONENTS}
    dtypes["vae"] = {"dtype": vae_dtype, "param_dtype": vae_dtype}

    parts = {}
    checkpoint = None
    if path.is_file():
        checkpoint = TensorFile(path)
        sources = split_checkpoint(checkpoint, configs["unet"], configs["vae"])
    for name in COMPONENTS:
        source = sources[name] if checkpoint else open_component(path / name, variant)
        with source:
            parts[name] = load_module(
                build(configs, name, **dtypes[name]), NORMALISE[name](source), shardings=shardings
            )
    if checkpoint:
        checkpoint.close()

    index = folder / "model_index.json"
    return SDXLBase(
        model=StableDiffusionXL(**parts),
        tokenizers=Tokenizers.from_pretrained(folder),
        configs=configs,
        scheduler_config=read_json(folder / "scheduler" / "scheduler_config.json", BadConfig),
        model_index=read_json(index, BadConfig) if index.exists() else {},
        path=str(path),
    )


def _config_folder(path: Path, config) -> Path:
    if not path.exists():
        raise MissingFile(
            f"{path}: no such file or directory; give a diffusers-format SDXL directory"
        )
    if path.is_dir():
        return path
    if config is None:
        raise MissingFile(
            f"{path}: a single-file checkpoint carries neither configs nor tokenizers; give "
            "config=DIR, a diffusers-format SDXL directory that has them (weights not needed there)"
        )
    return Path(config)


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


def save_sdxl(base: SDXLBase, folder):
    """Write a directory that ``diffusers.StableDiffusionXLPipeline.from_pretrained`` opens.

    Weights are written in the dtype they are stored in. Adapters are not part of it: merge them
    first, or save them on their own.
    """
    folder = Path(folder)
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
