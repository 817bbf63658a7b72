"""What a weight file is, told by its keys and shapes: of safetensors only the header is read.

found = identify("photomaker-v1.bin")
found.kind, found.what, found.facts, found.licence
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from persongen_jax.training.trained import trained_shapes
from persongen_jax.weights.errors import BadOnnx, MissingFile
from persongen_jax.weights.files.directory import open_component, open_file
from persongen_jax.weights.files.onnx_file import OnnxFile
from persongen_jax.weights.files.source import DictSource, TensorSource
from persongen_jax.weights.formats.arcface import name_onnx_tensors
from persongen_jax.weights.formats.embeddings.reading import embedding_files
from persongen_jax.weights.formats.lora.opening import CONFIG, DIFFUSERS_FILE, adapter_file
from persongen_jax.weights.formats.open_clip import original_file
from persongen_jax.weights.licences import json_of, licence
from persongen_jax.weights.recognition.embeddings import TOWERS
from persongen_jax.weights.recognition.kinds import NAMES, classify
from persongen_jax.weights.recognition.layout import unwrapped
from persongen_jax.weights.recognition.lora_names import COMPONENTS
from persongen_jax.weights.recognition.sdxl_facts import folder_facts


@dataclass(frozen=True)
class Found:
    """What :func:`identify` says.

    Attributes:
        kind: one of ``NAMES``.
        what: one line.
        facts: sizes that tell variants apart, by name ("rank": 64), in the order of printing.
        licence: a hint and its origin; never legal advice.
    """

    kind: str
    what: str
    facts: dict = field(default_factory=dict)
    licence: str = ""


def identify(path: str | Path) -> Found:
    """Identify a file or directory.

    Raises:
        MissingFile: there is none.
        WeightsError: it is damaged, or has an unsupported extension.
    """
    path = Path(path)
    sources = open_parts(path)
    try:
        if path.is_dir():
            return _identify_folder(path, sources)
        (source,) = sources.values()
        kind, facts = classify(source)
        return Found(kind, NAMES[kind], facts, licence(path, kind, source, facts))
    finally:
        for source in sources.values():
            source.close()


def open_parts(path: str | Path) -> dict[str, TensorSource]:
    """The tensors of a file, as {"": source}; of a directory, by component name.

    Those of a training run have the right names, shapes and dtypes, but read as zeros.

    Raises:
        MissingFile: nothing is there, or nothing with weights.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFile(f"{path}: no such file or directory. Check the path.")
    if path.suffix == ".onnx":
        return {"": _open_onnx(path)}
    if path.is_file():
        return {"": unwrapped(open_file(path))}
    if (path / "checkpoints").is_dir():
        return {"": _open_run(path)}
    if (path / CONFIG).is_file():
        return {"": open_file(adapter_file(path))}
    if (path / DIFFUSERS_FILE).is_file():
        return {"": open_file(path / DIFFUSERS_FILE)}
    if found := [name for name in COMPONENTS if (path / name / CONFIG).is_file()]:
        return {name: open_file(adapter_file(path / name)) for name in found}
    if _is_pipeline(path):
        parts = sorted(p.parent.name for p in path.glob("*/config.json"))
        return {name: open_component(path / name) for name in parts if _has_weights(path / name)}
    if words := embedding_files(path):
        return {TOWERS[tower]: open_file(file) for tower, file in words.items()}
    if original := original_file(path):
        return {"": unwrapped(open_file(original))}
    return {"": open_component(path)}


def count(sources: dict[str, TensorSource]) -> tuple[int, int, int, dict[str, int]]:
    """(tensors, numbers in them, bytes, tensors by dtype)."""
    infos = [source.info(key) for source in sources.values() for key in source.keys()]
    sizes = [int(np.prod(shape, dtype=np.int64)) for _, shape in infos]
    stored = sum(n * dtype.itemsize for n, (dtype, _) in zip(sizes, infos, strict=True))
    dtypes = {}
    for dtype, _ in infos:
        dtypes[dtype.name] = dtypes.get(dtype.name, 0) + 1
    return len(infos), sum(sizes), stored, dict(sorted(dtypes.items()))


# ---- Directories -------------------------------------------------------------------------------


def _is_pipeline(path: Path) -> bool:
    return (path / "model_index.json").is_file() or (path / "unet" / "config.json").is_file()


def _has_weights(folder: Path) -> bool:
    return any(p.suffix in (".safetensors", ".bin") for p in folder.iterdir())


def _open_run(path: Path) -> TensorSource:
    tensors = {
        # One number seen as many: no memory, however large.
        name: np.broadcast_to(np.zeros((), dtype), shape)
        for name, (dtype, shape) in trained_shapes(path).items()
    }
    return DictSource(tensors, str(path))


def _open_onnx(path: Path) -> TensorSource:
    file = OnnxFile(path)
    try:
        return name_onnx_tensors(file)
    except BadOnnx:
        return file


def _identify_folder(path: Path, sources) -> Found:
    if (path / "checkpoints").is_dir():
        config = json_of(path / "config.json")
        steps = sorted(int(p.name) for p in (path / "checkpoints").glob("[0-9]*"))
        facts = {
            "method": config.get("method", "unknown"),
            "checkpoints of step": ", ".join(map(str, steps)),
            "base": config.get("base", "unknown"),
        }
        return Found("run", NAMES["run"], facts, licence(path, "run"))
    if _is_pipeline(path):
        index = json_of(path / "model_index.json")
        facts = {"class": index.get("_class_name", "unknown"), **folder_facts(path, sources)}
        for name, source in sources.items():
            kind, more = classify(source)
            more.pop("predicts", None)  # already printed with the scheduler's value
            facts[name] = ", ".join([NAMES[kind], *(f"{k} {v}" for k, v in more.items())])
        return Found("sdxl", NAMES["sdxl"], facts, licence(path, "sdxl"))
    source = next(iter(sources.values()))  # if there are several, one per component, all are alike
    kind, facts = classify(source)
    if len(sources) > 1:
        facts["of"] = ", ".join(sources)
    return Found(kind, NAMES[kind], facts, licence(path, kind, source))


__all__ = ["Found", "count", "identify", "open_parts"]
