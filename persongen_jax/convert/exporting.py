"""Exports what a training run has learned, in the formats of the PyTorch world.

Every format holds only part of a method. Everything that the format has a place for is written, or
nothing; the answer names the rest, group by group.
"""

import re
from pathlib import Path
from typing import Any

from persongen_jax.models.branches import ParallelCrossAttention
from persongen_jax.models.lora import lora_layers
from persongen_jax.systems.open import TrainedRun
from persongen_jax.training.partition import assign_groups, leaf_paths
from persongen_jax.weights.errors import WeightsError
from persongen_jax.weights.formats.adapters import extract_adapter, module_paths
from persongen_jax.weights.formats.controlnet import save_controlnet
from persongen_jax.weights.formats.embeddings.writing import WRITTEN_FORMS, write_embeddings
from persongen_jax.weights.formats.identity.instantid import save_instantid
from persongen_jax.weights.formats.identity.pulid import save_pulid
from persongen_jax.weights.formats.ip_adapter import save_image_encoder, save_ip_adapter
from persongen_jax.weights.formats.lora.writing import (
    write_comfy_lora,
    write_kohya_lora,
    write_lora,
    write_peft_folder,
)
from persongen_jax.weights.formats.photomaker import save_photomaker
from persongen_jax.weights.formats.sdxl.loading import save_sdxl
from persongen_jax.weights.recognition.lora_names import COMPONENTS
from persongen_jax.weights.slots import processors

# Format -> paths of the trained parameters that it has a place for.
LORA = r"(unet|text_encoder(_2)?)/(?!.*/branches/).*/lora/(down|up|magnitude)"
HELD = {
    "diffusers-lora": LORA,
    "kohya-lora": LORA,
    "peft": LORA,
    "comfy": LORA,
    "photomaker": r"id_encoder/.*|unet/(?!.*/branches/).*/lora/(down|up)",
    "ip-adapter": (
        r"image_proj/.*|id_tokens/.*"
        r"|unet/.*/branches/identity/to_[kv]/kernel|unet/(?!.*/branches/).*/lora/(down|up)"
    ),
    "instantid": r"image_proj/.*|controlnet/.*|unet/.*/branches/identity/to_[kv]/kernel",
    "pulid": r"id_adapter/.*|unet/.*/branches/identity/to_[kv]/kernel",
    "controlnet": r"controlnet/.*",
    "diffusers": r"(unet|text_encoder(_2)?)/.*",
}
EMBEDDINGS = tuple(f"embedding-{form}" for form in WRITTEN_FORMS)
HELD |= dict.fromkeys(EMBEDDINGS, r"text_encoder(_2)?/embeddings/token_embedding/added")
# Paths that an IP-Adapter file and the encoder next to it hold in addition, if the method has them.
SHARED_HEADS = r"|id_encoder/visual_projection(_2)?/kernel"
TOWER = r"|id_encoder/vision_model/.*"
FORMATS = tuple(HELD)
LORAS = ("diffusers-lora", "kohya-lora", "peft", "comfy")
BRANCH = ".branches."


def export_run(
    run: TrainedRun, out: str | Path, file_format: str, *, sgm_names: bool = False
) -> str:
    """Write ``out``; return what was written and what the format has no place for.

    Args:
        run: systems.open.open_run's.
        out: ``.safetensors``; for PhotoMaker, IP-Adapter and InstantID also ``.bin`` (the convert
            extra);
            for PEFT, ControlNets, whole bases and diffusers' embeddings a new folder.
        file_format: one of ``FORMATS``.
        sgm_names: for a kohya file: name the UNet's blocks as kohya's own trainer does for SDXL.

    Raises:
        WeightsError: the method has nothing of the kind, or nothing that the format can hold
            without loss; then nothing is written.
    """
    if file_format not in FORMATS:
        raise WeightsError(f"format {file_format!r} is unknown; known: {', '.join(FORMATS)}")
    reason = unsupported_reason(run, file_format)
    if reason:
        others = [name for name in FORMATS if not unsupported_reason(run, name)]
        remedy = f"it can be written as {', '.join(others)}" if others else "keep the run"
        raise WeightsError(
            f"{run.workdir}: its method {run.config.method} {reason}. As {file_format} it cannot "
            f"be written; {remedy}, and generate reads the run itself by --method-weights"
        )
    model: Any = run.system.model
    if file_format in LORAS:
        said = _export_lora(run, out, file_format, sgm_names)
    elif file_format in EMBEDDINGS:
        said = _export_word(run, out, file_format.removeprefix("embedding-"))
    elif file_format == "photomaker":
        save_photomaker(model, out)
        said = "PhotoMaker"
    elif file_format == "pulid":
        save_pulid(model, out)
        said = f"PuLID {model.id_adapter.version}"
    elif file_format == "diffusers":
        if Path(out).suffix in (".safetensors", ".bin"):
            raise WeightsError(f"{out}: a whole base is a folder; give a name without an extension")
        save_sdxl(run.system.base, out)  # type: ignore[attr-defined]
        said = "SDXL in diffusers' format"
    elif file_format == "controlnet":
        if Path(out).suffix in (".safetensors", ".bin"):
            raise WeightsError(f"{out}: a ControlNet is a folder; give a name without an extension")
        save_controlnet(model.controlnet, out)
        said = "ControlNet in diffusers' format"
    elif file_format == "instantid":
        save_instantid(model, out)
        folder = Path(out).with_name(f"{Path(out).stem}_controlnet")
        save_controlnet(model.controlnet, folder)
        said = f"InstantID's adapter, and its IdentityNet next to it, in {folder.name}"
    else:
        save_ip_adapter(model, out)
        said = "IP-Adapter"
        if hasattr(model, "id_tokens"):
            folder = Path(out).with_name(f"{Path(out).stem}_image_encoder")
            save_image_encoder(model, folder)
            said += f", and its image encoder next to it, in {folder.name}"
    left = left_out(run, file_format)
    if left:
        groups = ", ".join(f"{group} ({n} arrays)" for group, n in left.items())
        said += f"; {file_format} has no place for what was trained of {groups}"
    return said


def _export_lora(run, out, file_format: str, sgm_names: bool) -> str:
    if file_format == "peft":
        if Path(out).suffix in (".safetensors", ".bin"):
            raise WeightsError(f"{out}: PEFT's form is a folder; give a name without an extension")
    elif Path(out).suffix != ".safetensors":
        raise WeightsError(f"{out}: the extension must be .safetensors")
    system: Any = run.system
    adapters = {name: _base_lora(getattr(system.model, name)) for name in COMPONENTS}
    adapters = {name: own for name, own in adapters.items() if own}
    notes = {"persongen_jax": f"{run.config.method}, step {run.step}"}
    modules = module_paths(system.model.unet)
    layers = system.base.configs["unet"].get("layers_per_block", 2)
    if file_format == "diffusers-lora":
        write_lora(out, adapters, notes)
    elif file_format == "peft":
        write_peft_folder(out, adapters, notes, base=str(run.config.base))
    elif file_format == "comfy":
        write_comfy_lora(out, adapters, notes, sgm_modules=modules, layers_per_block=layers)
    else:
        sgm = modules if sgm_names else None
        write_kohya_lora(out, adapters, notes, sgm_modules=sgm, layers_per_block=layers)
    return f"LoRA of {sum(map(len, adapters.values()))} layers"


def _export_word(run, out, form: str) -> str:
    system: Any = run.system
    ((word, rows),) = system.method.words_of(system.model).items()
    files = write_embeddings(out, word, rows, form, {"persongen_jax": f"step {run.step}"})
    count = len(next(iter(rows.values())))
    return f"{count} embeddings of the word {word!r} in {', '.join(f.name for f in files)}"


def unsupported_reason(run: TrainedRun, file_format: str) -> str:
    """What the method lacks for a format, or has that cannot be left out; "" if nothing."""
    model: Any = run.system.model
    found = [path for name in COMPONENTS for path in lora_layers(getattr(model, name))]
    if file_format == "diffusers":
        own = re.compile(HELD["diffusers"])
        table = assign_groups(leaf_paths(model), run.system.table)
        added = "/lora/", "/branches/", "/added"
        whole = all(own.fullmatch(p) and not any(a in p for a in added) for p in table)
        return "" if whole else "adds to the base instead of training it"
    if file_format in EMBEDDINGS:
        method: Any = run.system.method  # type: ignore[attr-defined]
        return "" if method.words_of(model) else "has no word of its own"
    on_branches = any("branches" in path for path in found)
    if file_format == "instantid":
        return "" if run.config.method == "instantid" else "is not InstantID"
    if file_format == "ip-adapter":
        if run.config.method == "instantid":
            return "reads a recogniser's embeddings by an IP-Adapter plus, which no file of it does"
        if hasattr(model, "id_adapter"):
            return "reads its tokens by PuLID's attention, which no file of an IP-Adapter does"
        readers = [x for name, x in processors(model.unet).items() if name.endswith(".attn2")]
        if not all(
            isinstance(x, ParallelCrossAttention) and "identity" in x.order for x in readers
        ):
            return "has no parallel attention branch on the identity"
    elif file_format == "pulid":
        return "" if hasattr(model, "id_adapter") else "is not PuLID"
    elif file_format == "controlnet":
        if not hasattr(model, "controlnet"):
            return "has no ControlNet"
        if run.config.method != "controlnet":
            return "has a ControlNet that reads tokens of the person instead of the prompt"
        return ""
    elif file_format == "photomaker" and not hasattr(model, "id_encoder"):
        return "has no ID encoder"
    elif all("branches" in path for path in found):
        return "has no LoRA on the base's layers"
    if on_branches and file_format in ("ip-adapter", "photomaker"):
        return "has a LoRA on its attention branches too, which goes with the rest"
    return ""


def left_out(run: TrainedRun, file_format: str) -> dict[str, int]:
    """Learning-rate group -> number of trained arrays that the format has no place for."""
    held, tokens = HELD[file_format], getattr(run.system.model, "id_tokens", None)
    if file_format == "ip-adapter" and tokens is not None:
        held += TOWER + (SHARED_HEADS if tokens.visual_projection_3 is None else "")
    pattern = re.compile(held)
    table = run.system.table
    left = {}
    for path, group in assign_groups(leaf_paths(run.system.model), table).items():
        if not pattern.fullmatch(path):
            left[group] = left.get(group, 0) + 1
    return left


def _base_lora(part) -> dict:
    """The LoRA on a component's own layers, by path; not that on a method's branches."""
    return {path: lora for path, lora in extract_adapter(part).items() if BRANCH not in f".{path}."}
