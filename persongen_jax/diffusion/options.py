"""Every setting of sampling, in one place: name, default, meaning, check, flag, key of a config.

Keywords of the pipelines, flags of the commands and the keys by which a run is validated are fields
of SamplingOptions. To add a setting, add a field, and the code that uses it.
"""

import argparse
import dataclasses
import inspect
import math
import operator
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from types import NoneType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from persongen_jax.diffusion.plan import Plan, make_plan
from persongen_jax.diffusion.strengths import Strength

FORMS = ("scale", "weight")  # of guidance


# ---- Checks of a value: (name, value) -> ValueError unless it is of the right kind ---------------


def whole(least: int = 1) -> Callable[[str, Any], None]:
    """A whole number of at least ``least``."""

    def check(name, number):
        try:
            operator.index(number)
        except TypeError:
            said = f"{name}=None" if number is None else f"{name} is {kind_of(number)}"
            raise ValueError(f"{said}: give a whole number") from None
        if number < least:
            raise ValueError(f"{name}={number}: give a whole number of at least {least}")

    return check


def finite(name: str, number: Any) -> None:
    """A finite number."""
    try:
        good = not isinstance(number, (str, bytes)) and math.isfinite(float(number))
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f"{name}={number!r}: give a finite number")


def fraction(name: str, number: Any) -> None:
    """A number in 0..1."""
    finite(name, number)
    if not 0 <= number <= 1:
        raise ValueError(f"{name}={number:g}: give 0 (none) to 1")


def seed_number(name: str, number: Any) -> None:
    """A whole number of 64 bits."""
    whole(-(2**63))(name, number)
    if number >= 2**63:
        raise ValueError(f"{name}={number}: give a whole number below 2**63")


def pair(name: str, given: Any) -> None:
    """(height, width) in pixels."""
    if not isinstance(given, (tuple, list, np.ndarray)) or len(given) != 2:
        raise ValueError(f"{name}={given!r}: give (height, width), two whole numbers of pixels")
    for i, value in enumerate(given):
        whole(-(2**31))(f"{name}[{i}]", value)


def of_kind(kind: Any, wanted: str) -> Callable[[str, Any], None]:
    """An instance of ``kind``, which messages call ``wanted``."""

    def check(name, given):
        if not isinstance(given, kind):
            raise ValueError(f"{name} is {kind_of(given)}: give {wanted}")

    return check


def flag(name: str, given: Any) -> None:
    """True or False."""
    if not isinstance(given, (bool, np.bool_)):
        raise ValueError(f"{name} is {given!r}: give True or False")


def one_of(*known: str) -> Callable[[str, Any], None]:
    """One of some names."""

    def check(name, given):
        if given not in known:
            *first, last = map(repr, known)
            raise ValueError(f"{name}={given!r}: use {', '.join(first)} or {last}")

    return check


def kind_of(given: Any) -> str:
    """Numbers as they are; of anything else the type."""
    if isinstance(given, (int, float, np.number, NoneType)):
        return repr(given)
    return f"of type {type(given).__name__}"


# ---- The settings --------------------------------------------------------------------------------


def setting(
    default: Any,
    check: Callable[[str, Any], None],
    *,
    flags: Sequence[str] | None = (),
    config: str = "",
) -> Any:
    """A field.

    Args:
        check: of values other than the default None.
        flags: the commands'; (): that of its name; None: it has none.
        config: the key of a config that sets it in validations.
    """
    about = {"check": check, "flags": flags, "config": config}
    return dataclasses.field(default=default, metadata=about)


@dataclass(frozen=True)
class SamplingOptions:
    """How images are sampled, by diffusers' names. None: not set.

    Attributes:
        num_inference_steps: sampling steps.
        guidance_scale: of classifier-free guidance; 1 or less turns it off and halves the cost.
        guidance_form: "scale": guidance_scale is the s of ε_u + s (ε_c - ε_u); "weight": the w of
            (1 + w) ε_c - w ε_u (arXiv 2207.12598, eq. 6), s - 1, which 0 or less turns off.
        guidance_rescale: 0 (none) to 1 (Lin et al., arXiv 2305.08891, section 3.4).
        scheduler: ddpm, ddim, euler, euler_ancestral, dpmpp_2m, k_dpmpp_2m, k_dpmpp_sde (the last
            two as k-diffusion has them) or a diffusers class name; default: the model's own.
        scheduler_options: its parameters, such as {"use_karras_sigmas": True} or {"eta": 0.5}.
        seed: of the noise: image n depends on (seed, n), not on how images are batched; default: 0.
        start_merge_step: through this step (inclusive) the prompt alone acts, then the identity
            (delayed merging, arXiv 2312.04461, section 3.3); default: the method's own, mostly a
            fifth of the steps (10 of 50); InstantID's and PuLID's act from the first (-1).
        scales: factors of the method's effects, {"identity": 0.8}; if absent, the method's own,
            mostly 1. Each is a number, or [(start, end, number), ...] over fractions of the steps,
            outside of which it is as if absent. Every stream and map of the method has one by its
            name ("background" scales the output of the branch that reads this stream). "identity"
            also scales references in text space: a class token e, fused with a reference to f,
            becomes e + scale * (f - e). "lora" scales the method's LoRA on the UNet, in addition to
            its weight.
        height: in pixels, a multiple of the VAE's factor (8); default: the model's own.
        width: likewise.
        num_images_per_prompt: images of each prompt.
        original_size: SDXL's micro-conditioning, (height, width); default: the image's.
        crops_coords_top_left: likewise; default: (0, 0).
        target_size: likewise; default: the image's.
        batch_size: images at once, rounded up to a multiple of the devices; default: four per
            device.
        tiling: decode in overlapping tiles. At 1024 x 1024 and SDXL's size, this needs a quarter of
            the memory, 1 GiB (float32).
        tile_size: side of a tile in pixels; default: 512.
        output_type: "pil"; "np", float32 [n, h, w, 3] in 0..1; or "latent", [n, h / 8, w / 8, 4].
    """

    num_inference_steps: int = setting(50, whole(), flags=["--steps"], config="validation_steps")
    guidance_scale: float = setting(5.0, finite, config="validation_guidance")
    guidance_form: str = setting("scale", one_of(*FORMS), config="validation_guidance_form")
    guidance_rescale: float = setting(0.0, fraction)
    scheduler: str | None = setting(None, of_kind(str, "a name"), config="validation_scheduler")
    scheduler_options: dict | None = setting(None, of_kind(dict, "a dictionary"), flags=None)
    seed: int | None = setting(None, seed_number, config="validation_seed")
    start_merge_step: int | None = setting(
        None,
        whole(-(2**31)),
        flags=["--start-merge-step", "--start_merge_step"],
        config="validation_merge_step",
    )
    scales: dict[str, Strength] | None = setting(None, of_kind(dict, "a dictionary"), flags=None)
    height: int | None = setting(None, whole())
    width: int | None = setting(None, whole())
    num_images_per_prompt: int = setting(1, whole(), flags=["--images-per-prompt"])
    original_size: tuple[int, int] | None = setting(None, pair, flags=None)
    crops_coords_top_left: tuple[int, int] | None = setting(None, pair, flags=None)
    target_size: tuple[int, int] | None = setting(None, pair, flags=None)
    batch_size: int | None = setting(None, whole())
    tiling: bool = setting(False, flag)
    tile_size: int | None = setting(None, whole())
    output_type: str = setting("pil", one_of("pil", "np", "latent"), flags=None)

    def __post_init__(self):
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None or each.default is not None:
                each.metadata["check"](each.name, value)

    # ---- from a call, a config, a command line ----

    def taking(self, named: dict) -> tuple["SamplingOptions", dict]:
        """With the settings among ``named``; and the rest of ``named``."""
        own = {name: value for name, value in named.items() if name in FIELDS}
        return replace(self, **own), {k: v for k, v in named.items() if k not in own}

    @classmethod
    def of_validation(cls, config: ConfigDict, **named: Any) -> "SamplingOptions":
        """As a run's config says, and ``named``."""
        keys = {name: key for name, key in KEYS.items() if key in config}
        said = {name: config[key] for name, key in keys.items() if config[key] != ""}
        return cls(**{**said, **named})

    # ---- what follows from them ----

    @property
    def guidance(self) -> float:
        """The s of ε_u + s (ε_c - ε_u), in whichever form it was given."""
        return self.guidance_scale + (self.guidance_form == "weight")

    @property
    def guides(self) -> bool:
        """Whether the side without a condition is computed, for a ``guidance`` above 1."""
        return self.guidance > 1

    def changed(self) -> list[str]:
        """Names of the settings that do not have their default."""
        values: dict[str, tuple[Any, Any]] = {
            name: (getattr(self, name), each.default) for name, each in FIELDS.items()
        }
        return [name for name, two in values.items() if not np.array_equal(*two)]

    def plan(self, scheduler_config: dict) -> Plan:
        """The sampler's numbers for a model with this scheduler_config.json."""
        own = self.scheduler_options or {}
        return make_plan(scheduler_config, self.num_inference_steps, self.scheduler, **own)

    def merge_step(self, calls: int, per_step: int = 1) -> int:
        """Through this one of the model's ``calls``, ``per_step`` a step, the prompt alone acts."""
        steps = -(-calls // per_step)
        own = default_merge_step(steps) if self.start_merge_step is None else self.start_merge_step
        return (own + 1) * per_step - 1

    def scalars(self, calls: int, per_step: int = 1) -> tuple[float, float, int]:
        """(guidance, guidance_rescale, merge_step), which the compiled loop reads."""
        return self.guidance, self.guidance_rescale, self.merge_step(calls, per_step)

    def time_ids(self, size: tuple[int, int]) -> np.ndarray:
        """SDXL's micro-conditioning of an image of (height, width), [6] float32."""
        given = (self.original_size, self.crops_coords_top_left, self.target_size)
        pairs = zip(given, (size, (0, 0), size), strict=True)
        sizes = [usual if own is None else own for own, usual in pairs]
        return np.concatenate(sizes).astype(np.float32)

    def without_effect(
        self, plan: Plan, negatives: Sequence, identity: bool, latents: bool
    ) -> Iterator[str]:
        """Sentences about settings that have none.

        Args:
            identity: whether references act. latents: whether the first noise is given.
        """
        if not self.guides:
            off = f"guidance_scale={self.guidance_scale:g} turns guidance off"
            if self.guidance_scale not in (0, 1):
                yield f"{off}; it acts above {int(self.guidance_form == FORMS[0])}"
            if any(negatives):
                yield f"the negative prompt has no effect: {off}"
            if self.guidance_rescale:
                yield f"guidance_rescale={self.guidance_rescale:g} has no effect: {off}"
        if self.seed is not None and latents and not plan.stochastic:
            yield (
                f"seed={self.seed} has no effect: latents are given, and {plan.name} draws no noise"
            )
        if self.tiling and self.output_type == "latent":
            yield "tiling has no effect on output_type='latent', which decodes nothing"
        if self.tile_size is not None and not self.tiling:
            yield f"tile_size={self.tile_size} has no effect without tiling"
        merge_step = self.start_merge_step
        if merge_step is not None and not identity:
            yield f"start_merge_step={merge_step} has no effect without references"
        elif merge_step is not None and merge_step >= (steps := _steps_of(plan)) - 1:
            yield (
                f"start_merge_step={merge_step} is not before the last of {steps} steps: "
                "the references will have no effect"
            )


FIELDS = {each.name: each for each in fields(SamplingOptions)}
# The settings that have a flag, and the flag's name among the parsed arguments.
FLAGS = {
    name: (*each.metadata["flags"], name)[0].lstrip("-").replace("-", "_")
    for name, each in FIELDS.items()
    if each.metadata["flags"] is not None
}
# The keys of a run's config by setting, and by the flag that changes them in an evaluation.
KEYS = {name: each.metadata["config"] for name, each in FIELDS.items() if each.metadata["config"]}
VALIDATION_FLAGS = {key.removeprefix("validation_"): key for key in KEYS.values()}


def _steps_of(plan: Plan) -> int:
    return -(-plan.num_steps // plan.calls_per_step)


def default_merge_step(steps: int) -> int:
    """The default last step in which the prompt alone acts: a fifth of all steps.

    PhotoMaker's released demonstration has a style strength of 20 % by default, of at most 30
    steps. However few there are, the identity acts in the last.
    """
    return min(30, steps // 5, steps - 2)


# ---- Flags ---------------------------------------------------------------------------------------


def add_options(
    parser: argparse.ArgumentParser, names: Sequence[str] = tuple(FLAGS), **defaults: Any
) -> None:
    """Add a flag for each of these settings.

    ``defaults``: by name, where a command's are others; a text is what the help says of None.
    """
    for name in names:
        default, said = defaults.get(name, FIELDS[name].default), _meaning(name)
        if isinstance(default, str):
            default, said = None, f"{_without_default(said)}; default: {default}"
        elif default is not None:
            said = _without_default(said)
        flags = FIELDS[name].metadata["flags"] or (f"--{name.replace('_', '-')}",)
        about = {"action": "store_true"} if default is False else {"type": _type(name)}
        parser.add_argument(*flags, default=default, help=said, **about)


def add_validation_options(parser: argparse.ArgumentParser) -> None:
    """Add VALIDATION_FLAGS."""
    for (name, key), short in zip(KEYS.items(), VALIDATION_FLAGS, strict=True):
        said = f"{_without_default(_meaning(name))}; default: the run's {key}"
        parser.add_argument(f"--{short.replace('_', '-')}", type=_type(name), help=said)


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The settings by name that ``add_options``' flags were given, or have a default for."""
    found = {name: getattr(args, flag_name, None) for name, flag_name in FLAGS.items()}
    return {name: value for name, value in found.items() if value is not None}


def _type(name):
    kind = typing.get_type_hints(SamplingOptions)[name]
    return next(own for own in (*typing.get_args(kind), kind) if own is not NoneType)


def _meaning(name):
    """The setting's entry in the class' docstring, as argparse takes it."""
    doc = inspect.getdoc(SamplingOptions) or ""
    said = re.search(rf"^    {name}: (.*(?:\n {{8}}.*)*)", doc, re.MULTILINE)
    return " ".join(said[1].split()).rstrip(".").replace("%", "%%") if said else ""


def _without_default(said):
    return re.sub("; default: .*", "", said)
