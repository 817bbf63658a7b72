"""generate's options for the base model: where its parts are, and how to sample it."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from persongen_jax.diffusion.options import SamplingOptions
from persongen_jax.diffusion.scheduler_config import PREDICTION_TYPES
from persongen_jax.diffusion.strengths import Strength
from persongen_jax.models.quantised import KINDS

# The options that an image's notes record.
KEPT = ("base", "base_config", "unet", "vae", "text_encoders", "prediction_type", "quantize")


def add_base_options(add: Callable) -> None:
    """``add``: a parser's add_argument."""
    add("--base", required=True, help="diffusers-format SDXL directory, or a checkpoint's file")
    add(
        "--base-config",
        metavar="DIR",
        help="for a file: directory with its configs and tokenizers, whose weights fill in for "
        "parts that the file lacks",
    )
    add("--unet", metavar="FILE|DIR", help="UNet instead of the base's")
    add("--vae", metavar="FILE|DIR", help="VAE instead of the base's")
    add(
        "--text-encoders",
        metavar="FILE|DIR",
        help="directory or checkpoint with both, or separate files, instead of the base's",
    )
    add(
        "--prediction-type",
        choices=PREDICTION_TYPES,
        help="what the UNet predicts; default: what the base's files say",
    )
    add(
        "--quantize",
        choices=tuple(KINDS),
        help="hold the kernels of UNet and text towers in 8 bits: half the memory of bfloat16",
    )
    add("--variant", help="read weight files of this variant, e.g. fp16")


def open_base_pipeline(args: argparse.Namespace, options: SamplingOptions) -> Any:
    """The pipeline of the base alone; refuses an unsupported sampler before loading."""
    from persongen_jax.pipeline import Pipeline

    on_cpu = jax.default_backend() == "cpu"
    return Pipeline.from_pretrained(
        args.base,
        dtype=jnp.dtype(args.dtype or ("float32" if on_cpu else "bfloat16")),
        vae_dtype=jnp.dtype(args.vae_dtype),
        variant=args.variant,
        config=args.base_config,
        unet=args.unet,
        vae=args.vae,
        text_encoders=args.text_encoders,
        prediction_type=args.prediction_type,
        check=options.plan,
        quantize=args.quantize or "",
    )


def parse_embedding(item: str) -> tuple[str, str]:
    """FILE or FILE:WORD, as (file, word or ""); a colon may also be part of the file's name."""
    path, _, word = item.rpartition(":")
    if item and (":" not in item or Path(item).exists()):
        return item, ""
    if not path or not word:
        raise ValueError(f"--embedding {item!r}: give a file, or FILE:WORD")
    return path, word


def scheduler_options(args: argparse.Namespace) -> dict:
    """The requested parameters of the sampler."""
    options = {}
    if args.karras:
        options["use_karras_sigmas"] = True
    if args.timestep_spacing:
        options["timestep_spacing"] = args.timestep_spacing
    return options


def parse_scales(items: Sequence[str]) -> dict[str, Strength]:
    """Command-line options: NAME=VALUE, or several NAME=VALUE@START-END of one name.

    Raises:
        ValueError: another form, or both forms for one name.
    """
    scales: dict[str, Any] = {}
    for item in items:
        name, _, rest = item.partition("=")
        value, at, steps = rest.partition("@")
        start, dash, end = steps.partition("-")
        try:
            if at and not dash:
                raise ValueError(f"no range in {steps!r}")
            strength: Any = [(float(start), float(end), float(value))] if at else float(value)
        except ValueError as error:
            raise ValueError(
                f"--scale {item}: write NAME=NUMBER, identity=0.8, or with a range of the steps "
                "NAME=NUMBER@START-END, identity=0.8@0.3-1"
            ) from error
        name = name.strip()
        if name in scales and not (at and isinstance(scales[name], list)):
            raise ValueError(f"--scale {item}: {name} has a strength for these steps already")
        scales[name] = scales.get(name, []) + strength if at else strength
    return scales
