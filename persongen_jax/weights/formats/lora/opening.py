"""Opens an adapter's path: a file, or a folder that PEFT or diffusers wrote."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.text_files import TextError, read_text
from persongen_jax.weights.errors import MissingFile, UnsupportedAdapter, shorten
from persongen_jax.weights.files.directory import open_file
from persongen_jax.weights.files.quantised import dequantised
from persongen_jax.weights.files.source import TensorSource, closed_on_error
from persongen_jax.weights.formats.lora.settings import PeftSettings, parse_object
from persongen_jax.weights.recognition.layout import unwrapped
from persongen_jax.weights.recognition.lora_names import COMPONENTS

CONFIG = "adapter_config.json"
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"

# The class that a PEFT folder was made for -> the component of that class in SDXL.
_CLASSES = {
    "UNet2DConditionModel": "unet",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
}
_TYPES = ("LORA", "LOHA", "LOKR", "IA3")


@dataclass(frozen=True)
class Opened:
    """One open file of an adapter.

    Attributes:
        component: the one that its keys without a prefix belong to; None: unknown.
        settings: PEFT's.
    """

    source: TensorSource
    component: str | None
    settings: PeftSettings


@contextlib.contextmanager
def open_adapter(path: str | os.PathLike) -> Iterator[list[Opened]]:
    """Open the files of an adapter, and close them at the end.

    Args:
        path: a file, a PEFT folder, a folder with one of those per component, or a folder written
            by diffusers' save_lora_weights.

    Raises:
        MissingFile: nothing is there, or nothing known.
        UnsupportedAdapter: PEFT's config names another kind, or cannot be read.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_closing(opened)) for opened in _open(path)]


@contextlib.contextmanager
def _closing(opened):
    with opened.source:
        yield opened


def _open(path: Path) -> Iterator[Opened]:
    if not path.is_dir():
        beside = path.parent / CONFIG
        config = beside if path.name in PEFT_FILES and beside.is_file() else None
        yield _opened(path, config)
        return
    parts = [path / name for name in COMPONENTS if (path / name / CONFIG).is_file()]
    kinds = {CONFIG: (path / CONFIG).is_file(), f"{', '.join(p.name for p in parts)}/": bool(parts)}
    kinds[DIFFUSERS_FILE] = (path / DIFFUSERS_FILE).is_file()
    there = [name for name, is_there in kinds.items() if is_there]
    if len(there) > 1:
        raise UnsupportedAdapter(
            f"{path}: holds several adapters: {' and '.join(there)}. Give one of them, or each."
        )
    if (path / CONFIG).is_file():
        yield _opened(adapter_file(path), path / CONFIG)
    elif parts:
        for part in parts:
            yield _opened(adapter_file(part), part / CONFIG, part.name)
    elif (path / DIFFUSERS_FILE).is_file():
        yield _opened(path / DIFFUSERS_FILE)
    else:
        files = sorted(each.name for each in path.iterdir())
        raise MissingFile(
            f"{path}: is a folder without {CONFIG} (PEFT's) or {DIFFUSERS_FILE} (diffusers'); give "
            f"the file itself. There are: {shorten(files) or 'no files'}."
        )


def adapter_file(folder: Path) -> Path:
    """The weights in a PEFT folder; MissingFile if there are none."""
    found = [folder / name for name in PEFT_FILES if (folder / name).is_file()]
    if not found:
        raise MissingFile(f"{folder}: has no {PEFT_FILES[0]} next to {CONFIG}. Fetch it again.")
    return found[0]


def _open_plain(file: Path) -> TensorSource:
    """Unwrap a trainer's file and multiply scaled fp8 by its scales."""
    return dequantised(unwrapped(open_file(file)))


def _opened(file: Path, config: Path | None = None, component: str | None = None) -> Opened:
    if config is None:
        with closed_on_error(_open_plain(file)) as source:
            return Opened(source, component, PeftSettings.of_file(source))
    try:
        text = read_text(config)
    except TextError as error:
        raise UnsupportedAdapter(str(error)) from None
    values = parse_object(str(config.parent), config.name, text)
    kind = values.setdefault("peft_type", "LORA")
    if kind not in _TYPES:
        raise UnsupportedAdapter(
            f"{config}: is of PEFT's type {kind}, which is not supported; {', '.join(_TYPES)} are. "
            "Merge it into the base weights with PEFT."
        )
    settings = PeftSettings(str(config), values)
    mapping = values.get("auto_mapping")
    name: Any = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    return Opened(_open_plain(file), component or _CLASSES.get(name), settings)


__all__ = ["CONFIG", "DIFFUSERS_FILE", "PEFT_FILES", "Opened", "adapter_file", "open_adapter"]
