"""The targets: a sound file, the ways to damage it, and its reader."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_pipeline.attributes.folder import open_folder
from data_pipeline.pictures.reading import load_image
from data_pipeline.records.manifest import read_manifest
from persongen_jax.convert import __main__ as convert
from persongen_jax.convert.importing import import_file
from persongen_jax.diffusion.plan import make_plan
from persongen_jax.models.sdxl.parts import COMPONENTS
from persongen_jax.weights.files.directory import open_component, read_config
from persongen_jax.weights.files.safetensors_file import TensorFile
from persongen_jax.weights.formats.sdxl.loading import load_sdxl
from persongen_jax.weights.formats.sdxl.opening import NORMALISE
from tests.fuzz import mutations
from tests.helpers.lora_files import save
from tests.helpers.photomaker_files import write_random_photomaker
from tests.weights.formats.sgm import checkpoint

MB = 1 << 20
SIDE = 24  # of the images, pixels


@dataclass(frozen=True)
class Target:
    """Attributes:
    file: the sound file.
    ways: to damage it.
    read: what reads it; called with the damaged file's path, which has its name and neighbours.
    room: bytes that reading may take in addition to twice the file.
    """

    file: Path
    ways: tuple
    read: Callable[[Path], object]
    room: int = 200 * MB


def write_targets(folder: Path, base: Path) -> dict[str, Target]:
    """By name; ``base`` is a tiny SDXL directory, sound files are written to ``folder``."""
    weights = {
        "lora, diffusers": _diffusers_lora(folder / "lora.safetensors"),
        "lora, kohya": _kohya_lora(folder / "kohya.safetensors"),
        "PhotoMaker": _photomaker(base, folder / "photomaker.safetensors"),
        "base in one file": _single_file(base, folder / "single.safetensors"),
    }

    def imported(path):
        out = path.parent / "out.safetensors"
        if "single" in path.name:
            out = path.parent / "out"
        try:
            return import_file(path, out, base)
        finally:
            shutil.rmtree(out, ignore_errors=True)
            out.unlink(missing_ok=True)

    found = {}
    for name, file in weights.items():
        found[f"{name}: import"] = Target(file, mutations.SAFETENSORS, imported)
        found[f"{name}: inspect"] = Target(file, mutations.SAFETENSORS, convert.inspect)
    pickled = _pickled(weights["PhotoMaker"], folder / "photomaker.bin")
    found["PhotoMaker's pickle: inspect"] = Target(pickled, mutations.ANY, convert.inspect)
    found["PhotoMaker's pickle: import"] = Target(pickled, mutations.ANY, imported)
    for file in sorted(base.rglob("*.json")):
        name = str(file.relative_to(base))
        if not name.startswith("image_encoder"):
            found[f"base: {name}"] = Target(file, mutations.JSON, _of_base(base))
    found["manifest"] = Target(_manifest(folder / "photos"), mutations.JSON, _read_manifest)
    found["table of attributes"] = Target(
        _table(folder / "faces"), mutations.TEXT, lambda path: open_folder(path.parent, size=8)
    )
    for suffix, options in PICTURES.items():
        file = _picture(folder / f"picture{suffix}", **options)
        found[f"picture{suffix}"] = Target(file, mutations.ANY, load_image, room=800 * MB)
    return found


# ---- sound files ---------------------------------------------------------------------------------

PICTURES = {".png": {}, ".jpg": {"quality": 90}, ".webp": {}, ".gif": {}, ".bmp": {}, ".tiff": {}}
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def _pair(width=64, rank=2):
    rng = np.random.default_rng(0)
    return (rng.standard_normal(shape).astype("f") for shape in ((rank, width), (width, rank)))


def _diffusers_lora(path):
    down, up = _pair()
    return save(path, {f"unet.{LAYER}.lora_A.weight": down, f"unet.{LAYER}.lora_B.weight": up})


def _kohya_lora(path):
    down, up = _pair()
    stem = f"lora_unet_{LAYER.replace('.', '_')}"
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    return save(path, {**tensors, f"{stem}.alpha": np.array(2.0, np.float32)})


def _photomaker(base, path):
    write_random_photomaker(base, path)
    return path


def _pickled(file, path):
    parts = {"id_encoder": {}, "lora_weights": {}}
    with TensorFile(file) as source:
        for key in source.keys():
            part, _, name = key.partition(".")
            parts[part][name] = torch.from_numpy(np.array(source.read(key)))
    torch.save(parts, path)
    return path


def _single_file(base, path):
    state = {}
    for name in COMPONENTS:
        with open_component(base / name) as file:
            source = NORMALISE[name](file)
            state[name] = {key: source.read(key) for key in source.keys()}
    return save(path, checkpoint(state, read_config(base / "unet")))


def _picture(path, seed=0, **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def _manifest(folder):
    folder.mkdir()
    lines = []
    for i in range(4):
        _picture(folder / f"{i}.png", i)
        entry = {"image": f"{i}.png", "identity": "ab"[i % 2], "caption": "a man img in a hat"}
        box = [2, 2, 20, 20]
        lines.append(json.dumps({**entry, "face_box": box, "class_word": "man"}))
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def _table(folder):
    folder.mkdir()
    with open(folder / "labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "glasses", "colour", "split"])
        for i in range(4):
            _picture(folder / f"{i}.png", i)
            table.writerow([f"{i}.png", i % 2, ("red", "blue")[i // 2], ("train", "test")[i % 2]])
    return folder / "labels.csv"


# ---- readers -------------------------------------------------------------------------------------


def _of_base(base):
    def read(path):
        """Put ``path`` into its place in ``base``, with links to everything else."""
        folder = next(p for p in path.parents if p.name == "base")
        loaded = load_sdxl(folder, check=lambda config: make_plan(config, 3))  # like generate
        loaded.tokenizers.encode("a man in a hat")

    read.root = base
    return read


def _read_manifest(path):
    return read_manifest(path.parent)
