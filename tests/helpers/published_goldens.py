"""Numbers that the authors' own code gave (tests/goldens/published), and the base they share."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np

from persongen_jax.models.sdxl.parts import build
from persongen_jax.weights.files.safetensors_file import write_safetensors
from persongen_jax.weights.random_base import SCHEDULER, make_configs, random_module
from persongen_jax.weights.saver import save_module, write_json
from tests.goldens import published

FOLDER = Path(published.__file__).parent


@functools.cache
def golden(name: str) -> tuple[dict[str, Any], Mapping[str, np.ndarray]]:
    """(config, arrays by their names in the file), which nobody may change."""
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files if key != "config"}
        config = json.loads(str(file["config"]))
    for array in arrays.values():
        array.setflags(write=False)
    return config, MappingProxyType(arrays)


def weights(name: str, module: str = "") -> dict[str, np.ndarray]:
    """The weights of a file, or of one module in it, by their original keys."""
    prefix = f"w/{module}/" if module else "w/"
    return {k.removeprefix(prefix): a for k, a in golden(name)[1].items() if k.startswith(prefix)}


def write_weights(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """A safetensors file of these tensors; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [
        (key, value.shape, value.dtype, lambda value=value: value) for key, value in tensors.items()
    ]
    write_safetensors(path, entries, {"format": "pt"})
    return path


def relative_gap(found, wanted) -> float:
    """The largest difference, of the largest value."""
    wanted = np.asarray(wanted, np.float64)
    found = np.asarray(found, np.float64)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def write_base(folder: Path) -> Path:
    """The base of all pipeline goldens (tiny_sdxl) in diffusers' format; its VAE is random.

    The originals never decode: their VAE only says that latents are an eighth of the image.
    """
    config, _ = golden("tiny_sdxl")
    made = make_configs("tiny", config["vocab_size"])
    configs = {
        "unet": {"_class_name": "UNet2DConditionModel", "act_fn": "silu", **config["unet"]},
        "vae": {**made["vae"], "block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4},
    }
    for name in ("text_encoder", "text_encoder_2"):
        kept = ("architectures", "model_type")
        kept = {key: made[name][key] for key in kept}
        configs[name] = {**kept, **config["text_common"], **config[name]}
        configs[name]["vocab_size"] = config["vocab_size"]
    kw = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    vae = random_module(build(configs, "vae", **kw), seed=0)
    save_module(
        vae, folder / "vae", configs["vae"], file_name="diffusion_pytorch_model.safetensors"
    )
    for name, file in (
        ("unet", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
        ("text_encoder_2", "model"),
    ):
        write_weights(folder / name / f"{file}.safetensors", weights("tiny_sdxl", name))
        write_json(folder / name / "config.json", configs[name])
    for name in ("tokenizer", "tokenizer_2"):
        (folder / name).mkdir()
        for file, text in config[f"{name}_files"].items():
            (folder / name / file).write_text(text, encoding="utf-8")
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", {**SCHEDULER, **config["scheduler"]})
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionXLPipeline"})
    return folder
