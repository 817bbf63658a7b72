"""A text encoder in a separate file, such as ComfyUI's clip_l.safetensors and clip_g.safetensors.

The names are transformers' or open_clip's. Its width shows which of a base's two encoders it is.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from persongen_jax.weights.errors import WeightsError
from persongen_jax.weights.files.directory import open_file
from persongen_jax.weights.files.quantised import dequantised
from persongen_jax.weights.files.source import TensorSource, closed_on_error
from persongen_jax.weights.formats.sdxl.original import split_checkpoint
from persongen_jax.weights.recognition.layout import Layout, Place, unwrapped

_TABLE = re.compile(r"(text_model\.embeddings\.|embeddings\.)?token_embedding\.weight$")
_LEFT_OUT = re.compile(r"(text_model\.)?(embeddings\.position_ids|logit_scale)$")
_ENDINGS = (".safetensors", ".bin", ".ckpt", ".pt")
ENCODERS = ("text_encoder", "text_encoder_2")


def text_encoder_files(where: Path) -> list[Path]:
    """The files of single text encoders at ``where``; none for a directory of parts."""
    if where.is_dir():
        if any((where / name).is_dir() or (where / "config.json").is_file() for name in ENCODERS):
            return []
        files = sorted(path for path in where.iterdir() if path.suffix in _ENDINGS)
    else:
        files = [where]
    return [path for path in files if _is_alone(path)]


def open_text_encoder(path: Path, configs: Mapping[str, dict]) -> tuple[str, TensorSource]:
    """(component, its tensors under transformers' names).

    Raises:
        WeightsError: an encoder whose width matches neither of ``configs``, or a fault of the file.
    """
    with closed_on_error(open_file(path)) as source:
        inner = dequantised(unwrapped(source))
        width = _width(inner)
        names = [name for name in ENCODERS if configs[name].get("hidden_size") == width]
        if not names:
            widths = " and ".join(str(configs[name].get("hidden_size")) for name in ENCODERS)
            raise WeightsError(
                f"{path}: a text encoder of width {width}; the base's have {widths}. Take SDXL's "
                "(clip_l and clip_g)."
            )
        # If both have the same width (no published base's), the name decides.
        second = len(names) == 2 and re.search(r"_g\b|_2\b|bigg", path.stem, re.IGNORECASE)
        name = names[-1] if second else names[0]
        return name, _named(inner, name)


def _named(source: TensorSource, name: str) -> TensorSource:
    keys = source.keys()
    dialect = "open_clip" if "token_embedding.weight" in keys else "transformers"
    # SDXL does not use a projection of its first text encoder.
    projection = re.compile(r"text_projection(\.weight)?$" if name == "text_encoder" else r"$^")
    left_out = [key for key in keys if _LEFT_OUT.match(key) or projection.match(key)]
    own = tuple(key for key in keys if key not in left_out)
    layout = Layout({name: Place(name, "", dialect, own)}, tuple(left_out))
    return split_checkpoint(source, {}, {}, layout, (name,))[name]


def _is_alone(path: Path) -> bool:
    with open_file(path) as source:
        return _width(unwrapped(source)) is not None


def _width(source: TensorSource) -> int | None:
    """Width of the states of a single text encoder; None if it is something else."""
    keys = source.keys()
    if any(key.startswith(("vision_model.", "visual.")) for key in keys):
        return None
    shape = next((source.info(key)[1] for key in keys if _TABLE.match(key)), ())
    return int(shape[1]) if len(shape) == 2 else None


__all__ = ["open_text_encoder", "text_encoder_files"]
