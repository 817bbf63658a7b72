"""Finds the files of a base model and checks them by headers and configs; reads no weight.

A base is a diffusers directory, or a single file together with a directory of its configs. Each
part may come from elsewhere, and the directory fills in what a single file lacks.

    with open_base("unet.safetensors", config="sdxl", vae="vae.safetensors") as files:
        files.sources["unet"], files.configs["unet"], files.scheduler_config
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from persongen_jax.diffusion.schedule import NoiseSchedule
from persongen_jax.models.sdxl.parts import COMPONENTS
from persongen_jax.weights.errors import BadConfig, MissingFile, WeightsError, shorten
from persongen_jax.weights.files.directory import open_component, open_file, read_config, read_json
from persongen_jax.weights.files.quantised import dequantised, precision
from persongen_jax.weights.files.source import RenamedSource, TensorSource
from persongen_jax.weights.formats.sdxl.check import (
    GIVEN,
    check_configs,
    check_file,
    check_latents,
    check_unet_config,
    check_vae,
    decide_prediction,
)
from persongen_jax.weights.formats.sdxl.config_values import check_time_ids, check_values
from persongen_jax.weights.formats.sdxl.original import split_checkpoint
from persongen_jax.weights.formats.sdxl.text_encoder_file import (
    open_text_encoder,
    text_encoder_files,
)
from persongen_jax.weights.keys import normalise_attention, normalise_clip_text
from persongen_jax.weights.recognition.kinds import NAMES, classify
from persongen_jax.weights.recognition.layout import read_layout, unwrapped
from persongen_jax.weights.recognition.sdxl import (
    CALLED,
    Prediction,
    Recognised,
    prediction,
    recognise,
)

NORMALISE = {
    "unet": lambda source: source,
    "vae": normalise_attention,
    "text_encoder": normalise_clip_text,
    "text_encoder_2": normalise_clip_text,
}

BASES = ("checkpoint", "unet", "unet-sgm", "vae", "vae-sgm")
# The keys of a scheduler_config.json that describe the training rather than the sampling.
TRAINED_FOR: tuple[str, ...] = ("prediction_type", "rescale_betas_zero_snr", "num_train_timesteps")
TRAINED_FOR += ("beta_start", "beta_end", "beta_schedule", "trained_betas")
UNSAID = {"prediction_type": "epsilon", "num_train_timesteps": 1000}  # diffusers' own
CONFIG = "config=DIR (generate: --base-config, training: --config.base_config)"


@dataclass
class BaseFiles:
    """The result of :func:`open_base`; a context manager.

    Attributes:
        folder: the directory of configs and tokenizers. homes: the folder of each config.json.
        configs: config.json contents by component. sources: their tensors, under today's names.
        scheduler_config: adapted to markers and the user.
        notes: sentences about what was ignored, filled in or decided.
        prediction: what the UNet's file says about it.
    """

    folder: Path
    homes: dict[str, Path] = field(default_factory=dict)
    configs: dict[str, dict] = field(default_factory=dict)
    sources: dict[str, TensorSource] = field(default_factory=dict)
    scheduler_config: dict = field(default_factory=dict)
    model_index: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    prediction: Prediction = Prediction()
    opened: dict[Path, tuple[TensorSource, Recognised]] = field(default_factory=dict)

    def close(self) -> None:
        for source in (*self.sources.values(), *(source for source, _ in self.opened.values())):
            source.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # ---- opening ----

    def file(self, path: Path) -> tuple[TensorSource, Recognised]:
        """A single file, opened once and dequantised; and what it is."""
        if path not in self.opened:
            if shard := re.search(r"-(\d+)-of-(\d+)\.", path.name):
                number, count = map(int, shard.groups())
                raise WeightsError(f"{path}: shard {number} of {count}. Give the folder of all.")
            source = open_file(path)
            try:
                inner = unwrapped(source)
                found = recognise(inner)
                check_file(found, path)
                _check_kind(path, inner)
                self.opened[path] = dequantised(inner), found
            except BaseException:
                source.close()
                raise
            self._note_layout(path, found.layout, found.precision)
        return self.opened[path]

    def from_file(self, path: Path, parts: Iterable[str]) -> None:
        """Use those of ``parts`` that the file has as the sources of their components."""
        source, found = self.file(path)
        if "unet" in parts:
            self.prediction = found.prediction
        layout = read_layout(source)  # without scales
        if "vae" in parts and "vae" in layout.parts:
            check_latents(source, layout.parts["vae"], self.configs["vae"], path)
        configs = (self.configs["unet"], self.configs["vae"])
        for name, part in split_checkpoint(source, *configs, layout, tuple(parts)).items():
            self.sources[name] = part

    def from_folder(self, name: str, folder: Path, variant: str | None) -> None:
        """Use a component's folder as its source."""
        source = open_component(folder, variant)
        try:
            inner = dequantised(source)
            layout = read_layout(inner)
            stored = precision(source)
            left = {*layout.harmless, *layout.markers} if name in ("unet", "vae") else ()
            if name == "unet":
                self.prediction = prediction(inner, layout.markers)
                check_file(Recognised("", layout, self.prediction, ""), folder)
            if left:
                table = {key: (key, None) for key in inner.keys() if key not in left}
                inner = RenamedSource(inner, table, ignored=tuple(left))
        except BaseException:
            source.close()
            raise
        self.sources[name] = inner
        self._note_layout(folder, layout if left else None, stored)

    def _note_layout(self, where, layout, stored):
        if layout and (extra := layout.unusual()):
            self.notes.append(f"{where}: ignored, as no model needs them: {shorten(extra, 6)}")
        if "float8" in stored:
            self.notes.append(
                f"{where}: its weights are stored as {stored}: 8 bits each, 2 or 3 of them "
                "mantissa; they are read exactly, and are coarser than the fp16 they were made from"
            )


def open_base(
    path: str | os.PathLike,
    *,
    config: str | os.PathLike | None = None,
    unet: str | os.PathLike | None = None,
    vae: str | os.PathLike | None = None,
    text_encoders: str | os.PathLike | None = None,
    variant: str | None = None,
    prediction_type: str | None = None,
) -> BaseFiles:
    """Find and check all files of a base; the arguments are ``load_sdxl``'s.

    Raises:
        MissingFile: a file, or a part that no file holds; the message says how to give it.
        WeightsError: another family of models, or any other fault that the headers show.
    """
    given = {"unet": unet, "vae": vae, "text_encoder": text_encoders}
    for name, value in {"path": path, "config": config, **given}.items():
        if value is not None and not isinstance(value, (str, os.PathLike)):
            raise MissingFile(f"{name}={value!r}: give a path.")
    path = Path(path)
    given = {name: Path(value) for name, value in given.items() if value}
    if "text_encoder" in given:
        given["text_encoder_2"] = given["text_encoder"]
    if not path.exists():
        raise MissingFile(
            f"{path}: no such file or directory; give a diffusers-format SDXL directory"
        )
    files = BaseFiles(path)
    try:
        single = None
        if path.is_file():
            if not config and path.stat().st_size == 0:
                raise MissingFile(f"{path}: is empty; fetch it again, and give {CONFIG}")
            single = files.file(path)[1]
            _check_base_file(path, single)
            files.folder = _config_folder(path, config)
        elif config:
            files.notes.append(f"{path}: has its own configs, so that {config} has no effect")
        _read_configs(files, given)
        _open_parts(files, path, given, single, variant)
        _decide(files, path, given, prediction_type)
    except BaseException:
        files.close()
        raise
    return files


def _check_base_file(path: Path, found: Recognised):
    """WeightsError for a file with only a VAE."""
    if set(found.layout.parts) == {"vae"}:
        raise WeightsError(f"{path}: this is a VAE alone. Give it with a base: {GIVEN['vae']}.")


def _check_kind(path: Path, source: TensorSource):
    """WeightsError for a file that has nothing of a base, such as a LoRA."""
    kind, _ = classify(source)
    if kind not in BASES:
        what = f"this is {NAMES[kind]}" if kind != "unknown" else "its keys are of no known model"
        raise WeightsError(f"{path}: {what}. Give an SDXL checkpoint, or a part of one.")


def _config_folder(path: Path, config) -> Path:
    if not config:
        raise MissingFile(
            f"{path}: a single-file checkpoint carries neither configs nor tokenizers; give "
            f"{CONFIG}, a diffusers-format SDXL directory that has them (weights not needed there)"
        )
    return Path(config)


# ---- Configs -----------------------------------------------------------------------------------


def _read_configs(files: BaseFiles, given):
    folder = files.folder
    index = folder / "model_index.json"
    files.model_index = read_json(index, BadConfig) if index.exists() else {}
    homes = {}
    for name in COMPONENTS:
        homes[name] = folder / name
        if name in given and given[name].is_dir():
            own = _component(given[name], name)
            homes[name] = own if (own / "config.json").is_file() else folder / name
    if not homes["unet"].is_dir():
        _explain_no_unet(folder)
    # The UNet's first: in another family's directory, other parts may not even exist.
    unet = read_config(homes["unet"])
    check_values("unet", unet, homes["unet"] / "config.json")
    check_unet_config(unet, homes["unet"] / "config.json")
    files.configs = {"unet": unet} | {name: read_config(homes[name]) for name in COMPONENTS[1:]}
    files.homes = homes
    for name, config in files.configs.items():
        check_values(name, config, homes[name] / "config.json")
    check_configs(files.configs, folder)
    check_time_ids(unet, files.configs["text_encoder_2"], homes["unet"] / "config.json")
    plain = folder / "vae"
    if homes["vae"] != plain and (plain / "config.json").is_file():
        check_vae(files.configs["vae"], read_config(plain), homes["vae"])
    files.scheduler_config = read_json(folder / "scheduler" / "scheduler_config.json", BadConfig)


def _component(folder: Path, name: str) -> Path:
    """The component's folder within a whole directory, or the folder itself."""
    return folder / name if (folder / name).is_dir() else folder


def _explain_no_unet(folder: Path):
    """Raise MissingFile that says what the directory is instead."""
    if not folder.is_dir():
        raise MissingFile(f"{folder}: no such directory; give a diffusers-format SDXL directory")
    what = ""
    for inner in (folder / "transformer", folder):
        if (inner / "config.json").is_file():
            kind = read_config(inner).get("_class_name") or read_config(inner).get("model_type")
            what = f"; {inner}/config.json is of {kind}"
            break
    raise MissingFile(f"{folder}: no unet folder: this is not an SDXL directory{what}")


# ---- Weights' headers --------------------------------------------------------------------------


def _open_parts(files: BaseFiles, path: Path, given, single, variant):
    wanted = set(COMPONENTS)
    for where in dict.fromkeys(given.values()):
        names = [name for name in COMPONENTS if given.get(name) == where]
        alone = text_encoder_files(where) if where.exists() and "text_encoder" in names else []
        if alone:
            wanted -= _open_text_encoders(files, alone)
            continue
        wanted -= set(names)
        if where.is_file():
            files.from_file(where, names)
            if lacking := [name for name in names if name not in files.sources]:
                held = ", ".join(CALLED[name] for name in files.file(where)[1].layout.parts)
                raise WeightsError(f"{where}: {CALLED[lacking[0]]} is not in it, but {held}.")
        elif where.is_dir():
            there = [name for name in names if (where / name).is_dir()] or names
            wanted |= set(names) - set(there)
            for name in there:
                files.from_folder(name, _component(where, name), variant)
        else:
            raise MissingFile(f"{where}: no such file or directory. Check the path.")
    if single is not None:
        own = [name for name in COMPONENTS if name in wanted and name in single.layout.parts]
        files.from_file(path, own)
        wanted -= set(own)
    _fill_in(files, [name for name in COMPONENTS if name in wanted], single, path, variant)
    for name in COMPONENTS:
        files.sources[name] = NORMALISE[name](files.sources[name])


def _open_text_encoders(files: BaseFiles, paths) -> set[str]:
    """The components that these files hold, one each; the base keeps its others."""
    found = {}
    for path in paths:
        name, source = open_text_encoder(path, files.configs)
        files.sources[name], before = source, files.sources.get(name)
        if before is not None:
            before.close()
            raise WeightsError(
                f"{path}: {CALLED[name]}, as {found[name]} is. Leave one of them in the folder."
            )
        found[name] = path
        files.notes.append(f"{path}: {CALLED[name]}")
    return set(found)


def _fill_in(files: BaseFiles, names, single, path, variant):
    """Fill in the missing parts from the directory; one error lists all that it lacks."""
    lacking = []
    for name in names:
        folder = files.folder / name
        if _has_weights(folder):
            files.from_folder(name, folder, variant)
            if single is not None:
                files.notes.append(f"{path}: without {CALLED[name]}: {folder}'s is taken")
        else:
            lacking.append(name)
    if lacking:
        parts = [CALLED[name] for name in (single.layout.parts if single else files.sources)]
        ways = " and ".join(dict.fromkeys(GIVEN[name] for name in lacking))
        folder = f", or a directory that has their weights as {CONFIG}" if single else ""

        def called(name):  # for a directory, with the place that was searched
            return CALLED[name] if single else f"{CALLED[name]} ({files.folder / name})"

        verb = "are" if len(lacking) > 1 else "is"
        raise MissingFile(
            f"{path}: holds {', '.join(parts) or 'no weights'}; "
            f"{', '.join(map(called, lacking))} {verb} missing. Give {ways}{folder}."
        )


def _has_weights(folder: Path) -> bool:
    """Whether there is a weight file, or an index that lists some."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return any(name.endswith((".safetensors", ".bin")) or ".index." in name for name in names)


# ---- The schedule ------------------------------------------------------------------------------


def _own_scheduler(unet: Path) -> Path | None:
    """The scheduler_config.json of the model that a UNet's folder is part of."""
    places = (unet, unet.parent) if unet.is_dir() else ()
    found = (place / "scheduler" / "scheduler_config.json" for place in places)
    return next((path for path in found if path.is_file()), None)


def _use_own_schedule(files: BaseFiles, path: Path):
    """Use a UNet's own schedule instead of the base's, as it was trained with it."""
    own, before = read_json(path, BadConfig), files.scheduler_config

    def said(config, key):
        return config.get(key) or UNSAID.get(key)

    changed = [key for key in TRAINED_FOR if said(own, key) != said(before, key)]
    if not changed:
        return
    kept = {key: value for key, value in before.items() if key not in TRAINED_FOR}
    files.scheduler_config = kept | {key: own[key] for key in TRAINED_FOR if key in own}
    listed = ", ".join(f"{key}={said(own, key)!r}" for key in changed)
    files.notes.append(f"{path}: of the UNet that is taken: {listed}, in place of the base's")


def _decide(files: BaseFiles, path: Path, given, asked):
    """The scheduler's config with what the UNet's file says; ValueError if it is unsupported."""
    where = given.get("unet", path)
    if "unet" in given and (own := _own_scheduler(given["unet"])):
        _use_own_schedule(files, own)
    decided, notes = decide_prediction(files.scheduler_config, files.prediction, asked, where)
    files.scheduler_config = decided
    files.notes += notes
    try:
        NoiseSchedule.from_config(decided)
    except ValueError as error:
        raise BadConfig(f"{files.folder}/scheduler/scheduler_config.json: {error}") from error


__all__ = ["BaseFiles", "CONFIG", "NORMALISE", "open_base"]
