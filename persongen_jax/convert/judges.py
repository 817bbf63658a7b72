"""Imports the judging networks' files: every key is checked, and the tensors are copied."""

from collections.abc import Callable, Iterable
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from persongen_jax.models.judges.facenet import SIZE, FaceNet
from persongen_jax.models.judges.inception import InceptionV3
from persongen_jax.models.judges.lpips import LPIPS, Backbone
from persongen_jax.models.layers import LayerOptions, UnusedRngs
from persongen_jax.weights.errors import KeyMismatch
from persongen_jax.weights.files.directory import open_file
from persongen_jax.weights.files.source import TensorSource
from persongen_jax.weights.formats.judges.facenet import open_facenet
from persongen_jax.weights.formats.judges.inception import open_inception
from persongen_jax.weights.formats.judges.lpips import open_lpips
from persongen_jax.weights.loader import prepare_module
from persongen_jax.weights.recognition.judges import (
    LPIPS_FILES,
    infer_backbone_config,
    lpips_heads_net,
    lpips_net,
    name_lpips_tensors,
)
from persongen_jax.weights.recognition.layout import unwrapped

KW: LayerOptions = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}
HEADS = 5
Copy = Callable[[TensorSource, str | Path, Iterable[str]], None]


def import_judge(kind: str, path: str | Path, out: str | Path, copy: Copy) -> str:
    """Check a file of recognition.judges.JUDGES and write it; return a line that says what it is.

    Args:
        copy: writes the tensors of these names to ``out``.

    Raises:
        WeightsError: a fault of the file; nothing is written.
    """
    named, said = _CHECKS[kind](path)
    with named, unwrapped(open_file(path)) as file:
        copy(file, out, [key for key in file.keys() if key not in named.ignored])
    return said


def _inception(path) -> tuple[TensorSource, str]:
    source, config = open_inception(path)
    prepare_module(lambda: InceptionV3(**config, **KW), source)
    return source, "FID's Inception; evaluate reads it by --inception"


def _facenet(path) -> tuple[TensorSource, str]:
    source, config = open_facenet(path)
    prepare_module(lambda: FaceNet(**config, **KW), source)
    return source, f"face recogniser for crops of {SIZE} pixels; evaluate reads it by --face-net"


def _lpips(path) -> tuple[TensorSource, str]:
    joined, config = open_lpips(path)
    with joined:
        prepare_module(lambda: LPIPS(**config, **KW), joined)
    return _lpips_names(path), f"LPIPS on {config['net']}; evaluate reads it by --lpips"


def _lpips_backbone(path) -> tuple[TensorSource, str]:
    source = _lpips_names(path)
    config = infer_backbone_config(source, _net_of(path))
    prepare_module(lambda: nnx.Dict(backbone=Backbone(**config, **KW)), source)
    return source, (
        f"backbone of LPIPS ({config['net']}); evaluate reads its folder by --lpips, with the "
        "heads' file in it"
    )


def _lpips_heads(path) -> tuple[TensorSource, str]:
    source = _lpips_names(path)
    wanted = {f"heads.{i}" for i in range(HEADS)}
    found = set(source.keys())
    if found != wanted or any(len(source.info(key)[1]) != 1 for key in found):
        raise KeyMismatch(
            source.describe(),
            missing=sorted(wanted - found),
            unexpected=sorted(found - wanted),
            remedy=f"It has no heads of LPIPS on AlexNet or VGG16: take {LPIPS_FILES}.",
        )
    with unwrapped(open_file(path)) as file:
        net = lpips_heads_net(file) or "a net of other widths"
    return source, (
        f"heads of LPIPS ({net}); evaluate reads their folder by --lpips, with the backbone's "
        "file in it"
    )


def _lpips_names(path) -> TensorSource:
    return name_lpips_tensors(unwrapped(open_file(path)))


def _net_of(path) -> str:
    with unwrapped(open_file(path)) as file:
        return lpips_net(file)


_CHECKS: dict[str, Callable[[str | Path], tuple[TensorSource, str]]] = {
    "inception": _inception,
    "facenet": _facenet,
    "lpips": _lpips,
    "lpips-backbone": _lpips_backbone,
    "lpips-heads": _lpips_heads,
}
