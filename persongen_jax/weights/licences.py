"""Under which terms a weight file is given, as far as the file and its folder say."""

import argparse
import contextlib
import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path

from data_pipeline.text_files import TextError, read_json
from persongen_jax.weights.errors import WeightsError
from persongen_jax.weights.files.directory import open_file
from persongen_jax.weights.files.source import TensorSource
from persongen_jax.weights.formats.arcface import licence_hint
from persongen_jax.weights.recognition.kinds import classify
from persongen_jax.weights.recognition.layout import unwrapped
from persongen_jax.weights.recognition.sdxl import SDXL

# Licences that the publishers of these files give; a file of the same layout may have another.
_PUBLISHED = {
    "photomaker-v1": "TencentARC's is Apache-2.0",
    "photomaker-v2": "TencentARC's is Apache-2.0; InsightFace's models, for it, are research only",
    "id-encoder": "TencentARC's is Apache-2.0",
    "ip-adapter": "h94/IP-Adapter's are Apache-2.0",
    "ip-adapter-faceid": "h94/IP-Adapter-FaceID's are for non-commercial research only",
    "instantid": (
        "InstantX's code is Apache-2.0 and its checkpoints are for research; InsightFace's models, "
        "for it, are for non-commercial research only"
    ),
    "pulid": "guozinan/PuLID's is Apache-2.0; InsightFace's antelopev2, for it, is non-commercial",
    "checkpoint": "SDXL 1.0's is CreativeML Open RAIL++-M; fine-tunes differ",
    "sdxl": "SDXL 1.0's is CreativeML Open RAIL++-M; fine-tunes differ",
    "unet": "SDXL 1.0's is CreativeML Open RAIL++-M; fine-tunes differ",
    "vae": "SDXL 1.0's is CreativeML Open RAIL++-M",
    "clip": "OpenAI's and LAION's are MIT",
    "eva-clip": "BAAI's (QuanSun/EVA-CLIP) and timm's copies are MIT",
    "dino": "facebookresearch's is Apache-2.0",
    "dinov2": "facebookresearch's is Apache-2.0",
    "inception": "pytorch-fid's file has TensorFlow's weights, which are Apache-2.0",
    "facenet": "not stated for facenet-pytorch's weights; their data, VGGFace2, were for research",
    "lpips": "the lpips package's heads are BSD-2-Clause, torchvision's backbones BSD-3-Clause",
    "lpips-heads": "the lpips package's are BSD-2-Clause",
    "lpips-backbone": "torchvision's are BSD-3-Clause; they were trained on ImageNet, for research",
    "run": "goes by the base, the data and the weights that it started from",
}
_CARD = re.compile(r"\A---\n(?:(?!---).*\n)*?license:[ \t]*(\S+)")  # in its front matter alone
_LICENCE_NOTES = ("modelspec.license", "license", "licence")


def licence(
    path: str | Path, kind: str, source: TensorSource | None = None, facts: dict | None = None
) -> str:
    """The licence stated by the file, config or model card; else that of the published files.

    ``facts``: tell's; their family may differ from the one that was published in this layout.
    """
    for where, text in _stated(Path(path), source):
        return f"{text} (so says {where})"
    if kind == "arcface":
        return f"{licence_hint(path)} (by the layout and path)"
    # Variants have the licence of their base kind.
    published = _PUBLISHED.get(kind) or _PUBLISHED.get(kind.rpartition("-")[0])
    if (facts or {}).get("family", SDXL) not in (SDXL, "no key tells"):
        published = None
    return "not stated in the file" + (f"; {published}" if published else "")


# ---- Said aloud, unless they are accepted --------------------------------------------------------

_accepted = False


def accept_terms() -> None:
    """From now on no terms are printed in this process; they hold all the same."""
    global _accepted
    _accepted = True


def add_terms_option(add: Callable) -> None:
    """``--accept-terms``, which calls :func:`accept_terms`; ``add``: a parser's add_argument."""

    class Accept(argparse.Action):
        def __call__(self, *_):
            accept_terms()

    add(
        "--accept-terms",
        action=Accept,
        nargs=0,
        help="print no licences of weights and face models: I have read them and keep to them",
    )


def say(line: str) -> None:
    """Print a line about terms to the standard error, unless they are accepted."""
    if not _accepted:
        print(line, file=sys.stderr)


@functools.cache
def say_terms(what: str, path: str, kind: str, terms: str = "") -> None:
    """Print, once per process, the licence of what has been loaded, to the standard error.

    Args:
        what: what it is and does, "faces are read by w600k_r50.onnx".
        path: of the file or folder; kind: one of recognition.kinds.NAMES.
        terms: where they are known already, of any kind.
    """
    if terms:
        say(f"{what}; its licence: {terms}")
        return
    file = Path(path)
    if file.is_dir():
        file = next(iter(sorted(file.glob("*.safetensors"))), file)
    opened = open_file(file) if file.suffix == ".safetensors" else contextlib.nullcontext()
    with opened as source:
        text = licence(path, kind, source)
    say(f"{what}; its licence: {text}")


@functools.cache
def say_terms_of(path: str) -> None:
    """:func:`say_terms` of a method's published weights: a file, or a ControlNet's folder."""
    kind = "controlnet"
    if Path(path).is_file():
        with open_file(path) as file:
            kind, _ = classify(unwrapped(file))
    say_terms(f"weights are read from {path}", path, kind)


def json_of(path: Path) -> dict:
    """A JSON file's object; {} if there is none. WeightsError if it is damaged."""
    try:
        content = read_json(path) if path.is_file() else {}
    except TextError as error:
        raise WeightsError(f"{error}. Fetch it again.") from None
    return content if isinstance(content, dict) else {}


def _stated(path: Path, source):
    """(where, text) of every statement about the licence."""
    for note in _LICENCE_NOTES:
        text = (source.metadata if source else {}).get(note, "").strip()
        if text:
            yield f"its {note}", text
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or path.name == "model.safetensors":
        for note in ("licence", "license"):
            text = json_of(folder / "config.json").get(note)
            if isinstance(text, str) and text:
                yield "config.json", text
    card = folder / "README.md"
    if card.is_file():
        match = _CARD.match(card.read_text("utf-8", "replace"))
        if match:
            yield "README.md", match[1]
