"""What the page offers to choose from, and what of it is in memory."""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import persongen_jax
from data_pipeline.faces.detectors import Detector
from persongen_jax.face_detectors import open_reference_detector
from persongen_jax.generate.__main__ import parse_lora
from persongen_jax.training.trained import saved_config

OPTIONS = {"encoder": "--image-encoder", "clip": "--clip", "controlnet": "--method-controlnet"}
FOLDERS = re.compile(r"""(?<![\w:/.])/(?:[^\s/:'"]+/)+""")
ASSETS = Path(persongen_jax.__file__).parent / "assets"


@dataclass(frozen=True)
class Offer:
    """One model of the page's list.

    Attributes:
        name: what the list shows.
        base: directory or file of the base.
        weights: of its identity method, a run's folder or a file; "" for the base alone.
        encoder, clip, controlnet: the networks of a file, see Pipeline.load_method.
        loras: FILE or FILE@WEIGHT.
        follows: a ControlNet's folder that follows skeletons; "" for none.
    """

    name: str
    base: str
    weights: str = ""
    encoder: str = ""
    clip: str = ""
    controlnet: str = ""
    loras: tuple[str, ...] = ()
    follows: str = ""

    def open(self) -> Any:
        """The pipeline, with everything loaded."""
        from persongen_jax.pipeline import Pipeline

        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        pipe = Pipeline.from_pretrained(self.base, dtype=dtype)
        if self.weights:
            pipe.load_method(
                None,
                self.weights,
                encoder=self.encoder,
                clip=self.clip,
                controlnet=self.controlnet,
            )
        for item in self.loras:
            path, weight = parse_lora(item)
            pipe.load_lora(path, weight=weight)
        if self.follows:
            pipe.load_controlnet(self.follows, name=Path(self.follows).name)
        return pipe


def miniature() -> list[Offer]:
    """The miniature with the adapter that ships, and its base alone."""
    base = str(ASSETS / "sdxl")
    adapter = ASSETS / "photomaker-v1.safetensors"
    return [
        Offer("PhotoMaker, as shipped", base, str(adapter), encoder=str(ASSETS / "clip")),
        Offer("base alone", base),
    ]


def offers(
    base: str,
    runs: Sequence[str] = (),
    files: Sequence[str] = (),
    loras: Sequence[str] = (),
    follows: str = "",
    **networks: str,
) -> list[Offer]:
    """One for each run and adapter file, and the base alone; without any the miniature's.

    Args:
        base: "": each run's own, and the miniature's for files.
        follows: a ControlNet's folder, for all of them.
        networks: encoder, clip, controlnet of the files.

    Raises:
        ValueError: a run without a checkpoint; nothing reads the networks.
    """
    given = [OPTIONS[name] for name, path in networks.items() if path]
    if given and not files:
        raise ValueError(f"{given[0]}: it goes with a file; give --method-weights")
    own: dict[str, Any] = {"loras": tuple(loras), "follows": follows}
    if not (base or runs or files):
        return [replace(offer, **own) for offer in miniature()]
    found = []
    for run in runs:
        config = saved_config(run)
        if config is None:
            raise ValueError(f"--run {run}: no checkpoint in it; give a training run's folder")
        found.append(Offer(short(run), base or config["base"], run, **own))
    usual = base or str(ASSETS / "sdxl")
    with_networks = {**own, **networks}
    found += [Offer(short(file), usual, file, **with_networks) for file in files]
    found.append(Offer("base alone", found[0].base if found and not base else usual, **own))
    return _distinct(found)


def short(path: str) -> str:
    """The last two parts: what visitors see of a place on this machine."""
    return "/".join(Path(path).parts[-2:])


def without_folders(text: str) -> str:
    """What is said to visitors: files of this machine by their names alone."""
    return FOLDERS.sub("", text)


def _distinct(found: list[Offer]) -> list[Offer]:
    """With whole paths where short names are the same."""
    names = [each.name for each in found]
    return [
        replace(each, name=each.weights) if names.count(each.name) > 1 else each for each in found
    ]


class Models:
    """Pipelines by offer: each is opened once, and at most ``most`` are kept.

    Attributes:
        computing: held while a pipeline computes, so that one does at a time. Opening, and looking
            at what is open, do not wait for it.
    """

    def __init__(self, found: Sequence[Offer], most: int = 2, opening: Callable = Offer.open):
        if most < 1:
            raise ValueError(f"--models {most}: keep at least one in memory")
        self.offers = {offer.name: offer for offer in found}
        self._most, self._open = most, opening
        self._kept: OrderedDict[Offer, Any] = OrderedDict()
        self._detectors: dict[str, Detector] = {}
        self.computing = threading.Lock()
        self._opening, self._lock = threading.Lock(), threading.Lock()

    def named(self, name: str) -> Offer:
        """ValueError for a name that is not on the list."""
        if name not in self.offers:
            raise ValueError(f"there is no model {name!r}; choose one of the list")
        return self.offers[name]

    def open(self, offer: Offer) -> Any:
        """The pipeline. The least recently used one leaves for it."""
        pipe = self._kept_one(offer)
        if pipe is None:
            with self._opening:
                pipe = self._kept_one(offer)  # somebody else may have opened it meanwhile
                if pipe is None:
                    with self._lock:
                        while len(self._kept) >= self._most:
                            self._kept.popitem(last=False)
                    pipe = self._open(offer)
                    with self._lock:
                        self._kept[offer] = pipe
        return pipe

    def _kept_one(self, offer: Offer) -> Any:
        with self._lock:
            if offer in self._kept:
                self._kept.move_to_end(offer)
            return self._kept.get(offer)

    def detector(self, offer: Offer) -> Detector:
        """What finds the faces of references for it."""
        with self._opening:
            if offer.base not in self._detectors:
                self._detectors[offer.base] = open_reference_detector(offer.base)
            return self._detectors[offer.base]
