"""generate's options for an identity method and for style: weights, and their networks."""

import argparse
from collections.abc import Callable
from typing import Any

from data_pipeline.records.schema import MAX_REFERENCES


def add_method_options(add: Callable) -> None:
    """``add``: a parser's add_argument."""
    add("--method", help="identity method; default: that of the weights")
    add(
        "--method-weights",
        help="working directory of a training run (RUN, or RUN/checkpoints/STEP), a PhotoMaker "
        "file, v1 or v2, or an IP-Adapter file",
    )
    add(
        "--image-encoder",
        default="",
        help="folder of the CLIP image encoder that belongs to the method's weights; default: what "
        "the run was trained with, for a file the base's image_encoder or a PhotoMaker file's own. "
        "FaceID, PhotoMaker v2 and others that read faces by a recogniser have no default: they "
        "need its file",
    )
    add(
        "--clip",
        default="",
        metavar="DIR",
        help="folder of the CLIP image encoder, where --image-encoder is a face recogniser",
    )
    add(
        "--method-controlnet",
        default="",
        metavar="DIR",
        help="InstantID's IdentityNet, the ControlNet that belongs to its weights",
    )
    add(
        "--method-setting",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what a weight file does not tell of its method; may be repeated: references=face, "
        "aligned (Plus-Face) or whole for an IP-Adapter, base or plus; shortcut=False (version 1) "
        "and s_scale=NUMBER for FaceID Plus",
    )
    add(
        "--style",
        default="",
        metavar="FILE",
        help="an IP-Adapter, base or plus, that acts in addition to the method; --scale style=0.7",
    )
    add(
        "--style-encoder",
        default="",
        metavar="DIR",
        help="folder of its image encoder; default: the base's image_encoder",
    )
    add(
        "--style-image",
        nargs="+",
        default=[],
        metavar="FILE",
        help=f"one to {MAX_REFERENCES} images that --style reads",
    )


def load_method(pipe: Any, args: argparse.Namespace) -> None:
    """Load what ``--method-weights`` and ``--style`` name, if anything."""
    if args.method_weights:
        networks = {"encoder": args.image_encoder, "clip": args.clip}
        networks["controlnet"] = args.method_controlnet
        settings = method_settings(args.method_setting)
        pipe.load_method(args.method, args.method_weights, **networks, **settings)
    if args.style:
        pipe.load_style(args.style, encoder=args.style_encoder)


def style_arguments(args: argparse.Namespace, count: int) -> dict:
    """What a call for ``count`` prompts gets of the style.

    Raises:
        ValueError: images without an adapter, or too many.
    """
    if not args.style_image:
        return {}
    if not args.style:
        raise ValueError(f"--style-image {args.style_image[0]}: no adapter reads it; give --style")
    if len(args.style_image) > MAX_REFERENCES:
        raise ValueError(
            f"{len(args.style_image)} times --style-image: give one to {MAX_REFERENCES}"
        )
    return {"style_image": [list(args.style_image)] * count}


def method_settings(items: list[str]) -> dict[str, str]:
    """NAME=VALUE by name; ValueError for anything else."""
    pairs = [item.partition("=") for item in items]
    for item, (name, equals, _) in zip(items, pairs, strict=True):
        if not equals or not name.isidentifier() or name in ("encoder", "clip", "controlnet"):
            raise ValueError(f"--method-setting {item}: write NAME=VALUE, of a setting")
    return {name: value for name, _, value in pairs}
