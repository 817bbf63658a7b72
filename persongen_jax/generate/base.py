"""generate's options for the base model: where its parts are, and how to sample it."""

import jax
import jax.numpy as jnp

from persongen_jax.diffusion.plan import make_plan
from persongen_jax.diffusion.scheduler_config import PREDICTION_TYPES

# The options that an image's notes record.
KEPT = ("base", "base_config", "unet", "vae", "text_encoders", "prediction_type")


def add_base_options(add):
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
    add("--variant", help="read weight files of this variant, e.g. fp16")


def open_base_pipeline(args):
    """The pipeline of the base alone; refuses an unsupported sampler before loading."""
    from persongen_jax.pipeline import Pipeline

    def check(scheduler_config):
        make_plan(scheduler_config, args.steps, args.scheduler, **scheduler_options(args))

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
        check=check,
    )


def scheduler_options(args) -> dict:
    """The requested parameters of the sampler."""
    options = {}
    if args.karras:
        options["use_karras_sigmas"] = True
    if args.timestep_spacing:
        options["timestep_spacing"] = args.timestep_spacing
    return options
