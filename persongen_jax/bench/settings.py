"""The bench's input: rows of settings, one process per row.

    size=512 batch=8,16 remat=false,true

gives four rows: a key with several values makes a row for each. Keys are those of the training
config (``batch`` is short for ``batch_size``) and the few of ``EXTRAS``.
"""

import importlib.util
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ml_collections import ConfigDict

from persongen_jax.config import load_config

# In addition to the config's keys, with their defaults. "attention": auto or xla; "xla": names of
# FLAGS joined by "+"; "cached": whether the feature cache provides VAE moments, text states and
# CLIP features.
EXTRAS = {
    "train": {"cached": True, "attention": "auto", "xla": ""},
    "sample": {
        "steps": 30,
        "guidance": 5.0,
        "identity": False,
        "attention": "auto",
        "xla": "",
    },
}
# Sets of XLA flags by name.
FLAGS = {
    "latency_hiding": "--xla_gpu_enable_latency_hiding_scheduler=true",
    "no_triton_gemm": "--xla_gpu_enable_triton_gemm=false",
    "no_command_buffer": "--xla_gpu_enable_command_buffer=",
    "no_autotune": "--xla_gpu_autotune_level=0",
}
# Keys that change how the work is done, but not the work itself.
MANNER = ("remat", "grad_accum", "fsdp", "shard_frozen")

# Settings of torch, each a row: "+" joins them. Options not listed are off.
#   compile: torch.compile; channels_last: memory layout of the convolutions; max_autotune: tries
#   more kernels while compiling; autocast: LoRA in float32 under torch.autocast, as in diffusers'
#   training scripts, instead of float32 masters next to copies in the model's dtype;
#   remat: gradient checkpointing.
TORCH_OPTIONS = ("eager", "compile", "channels_last", "max_autotune", "autocast", "remat")
ON_CPU = ("eager", "channels_last", "compile", "compile+channels_last")
ON_ACCELERATOR = ("compile", "compile+channels_last", "compile+channels_last+autocast")


def read_variant(variant: str) -> set[str]:
    """ "compile+channels_last" to its options; ValueError for an unknown one."""
    options = set(variant.split("+"))
    if options - set(TORCH_OPTIONS):
        raise ValueError(
            f"torch setting {variant!r}: join some of {', '.join(TORCH_OPTIONS)} by '+'"
        )
    return options


@dataclass(frozen=True)
class Setting:
    """One row's settings: the config's keys, the bench's own, and the names of XLA flags."""

    overrides: dict
    extras: dict
    xla: str = ""

    @property
    def work(self) -> dict:
        """The work, independent of who does it and how: rows with equal work are comparable."""
        work = {k: v for k, v in {**self.overrides, **self.extras}.items() if k not in MANNER}
        work.pop("attention")
        return work

    @property
    def picture(self) -> dict:
        """The config's keys that determine the work per image."""
        return {k: v for k, v in self.work.items() if k in self.overrides and k != "batch_size"}

    @property
    def image_work(self) -> dict:
        """``picture``, and what is done with it: it determines the floating-point operations."""
        return {k: v for k, v in self.work.items() if k not in ("batch_size", "identity")}

    def __str__(self):
        shown = {k: v for k, v in self.extras.items() if v not in ("auto", "")}
        parts = {**self.overrides, **shown, **({"xla": self.xla} if self.xla else {})}
        return " ".join(f"{k}={_plain(v)}" for k, v in parts.items())

    def xla_flags(self) -> str:
        return " ".join(FLAGS[name] for name in self.xla.split("+") if name)


def read_config(file: str | Path, overrides: dict) -> ConfigDict:
    """The training config with these changes, without any path to open.

    Raises:
        ValueError: no such file or key, or a value of another type.
    """
    return load_config(file, {**overrides, "start_from": ""})


def parse_rows(what: str, file: str | Path, rows: list[list[str]]) -> list[Setting]:
    """The settings of the command line; without rows: one, the unchanged config.

    Raises:
        ValueError: a key or value that is unknown; the message names it.
    """
    config, settings = read_config(file, {}), []
    for row in rows or [[]]:
        choices = {}
        for entry in row:
            key, equals, values = entry.partition("=")
            key = "batch_size" if key == "batch" else key
            if not equals or key not in {**config, **EXTRAS[what]}:
                raise ValueError(
                    f"--row {entry}: write KEY=VALUE[,VALUE...] with a key of {file} or one of "
                    f"batch, {', '.join(EXTRAS[what])}"
                )
            if key == "offload_encoders":
                raise ValueError(
                    f"--row {entry}: the bench keeps all weights on the devices; leave it out "
                    "(python -m persongen_jax.aot knows it)"
                )
            default = EXTRAS[what].get(key, config.get(key))
            choices[key] = [_read(entry, value, default) for value in values.split(",")]
        for key in ("size", "batch_size"):
            choices.setdefault(key, [config[key]])
        for chosen in itertools.product(*choices.values()):
            settings.append(_setting(what, dict(zip(choices, chosen, strict=True))))
    return settings


def _setting(what: str, values: dict) -> Setting:
    extras = {key: values.pop(key, default) for key, default in EXTRAS[what].items()}
    xla = extras.pop("xla")
    unknown = [name for name in xla.split("+") if name and name not in FLAGS]
    if unknown:
        raise ValueError(f"xla={xla}: unknown flags {unknown}; there are {', '.join(FLAGS)}")
    return Setting(values, extras, xla)


def _read(entry: str, value: str, default):
    """``value`` as the type of ``default``."""
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise ValueError(f"--row {entry}: use true or false")
        return value.lower() == "true"
    if isinstance(default, tuple):
        raise ValueError(f"--row {entry}: set it in the config's file")
    try:
        return type(default)(value)
    except ValueError as error:
        raise ValueError(f"--row {entry}: {error}") from error


def _plain(value):
    return str(value).lower() if isinstance(value, bool) else value


@dataclass
class Row:
    """A setting, the framework that runs it, and its results.

    Attributes:
        by: "ours" or "torch".
        variant: of torch, see ``TORCH_OPTIONS``.
        found: the worker's report: device, compile_s, peak_gib, ...
        seconds: per round, of ``steps`` steps (or batches of images) each.
        error: why there are none; "" if there are.
    """

    by: str
    setting: Setting
    variant: str = ""
    found: dict = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    steps: int = 0
    error: str = ""

    def __str__(self):
        return f"{self.by} {self.variant}".strip() + f" {self.setting}"

    def task(self, what: str, file: str, threads: int) -> dict:
        """For worker.make_row."""
        setting, options = self.setting, dict(self.setting.extras)
        if self.by == "torch":
            for key in ("cached", "attention", "identity"):
                options.pop(key, None)
            options |= {"variant": self.variant, "threads": threads}
        overrides = dict(setting.overrides)
        return {
            "what": what,
            "by": self.by,
            "config": file,
            "overrides": overrides,
            "options": options,
        }


IN_TORCH = ("photomaker", "lora")  # the methods that benchmarks/torch_rows.py trains


def check_versus(what: str, file: str | Path, settings: list[Setting]) -> None:
    """ValueError if torch has no counterpart of a training's method, or its code is missing."""
    if importlib.util.find_spec("benchmarks") is None:
        raise ValueError(
            "--versus torch: torch's side is benchmarks/torch_rows.py, which is not installed with "
            "the package; run it from a checkout"
        )
    method = read_config(file, {}).method
    others = {setting.overrides.get("method", method) for setting in settings} - set(IN_TORCH)
    if what == "train" and others:
        raise ValueError(
            f"--versus torch trains {' and '.join(IN_TORCH)}, and {file} "
            f"{', '.join(sorted(others))}: take configs/base.py, configs/lora.py or "
            "configs/bench_mid.py, or leave --versus out"
        )


def torch_rows(settings: list[Setting], variants: Sequence[str]) -> list[Row]:
    """A row of torch per variant for every work in ``settings`` that torch can do."""
    rows, seen = [], []
    for setting in settings:
        work = setting.work
        if work in seen or work.get("cached") is False or work.get("identity"):
            continue
        seen.append(work)
        overrides = {k: v for k, v in setting.overrides.items() if k not in MANNER}
        extras = {**setting.extras, "attention": "auto"}
        rows += [Row("torch", Setting(overrides, extras), variant) for variant in variants]
    return rows
