"""generate's options for an identity method: its weights, and the networks that belong to them."""

import argparse
from collections.abc import Callable
from typing import Any


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


def load_method(pipe: Any, args: argparse.Namespace) -> None:
    """Load what ``--method-weights`` names, if anything."""
    if args.method_weights:
        networks = {"encoder": args.image_encoder, "clip": args.clip}
        networks["controlnet"] = args.method_controlnet
        settings = method_settings(args.method_setting)
        pipe.load_method(args.method, args.method_weights, **networks, **settings)


def method_settings(items: list[str]) -> dict[str, str]:
    """NAME=VALUE by name; ValueError for anything else."""
    pairs = [item.partition("=") for item in items]
    for item, (name, equals, _) in zip(items, pairs, strict=True):
        if not equals or not name.isidentifier() or name in ("encoder", "clip", "controlnet"):
            raise ValueError(f"--method-setting {item}: write NAME=VALUE, of a setting")
    return {name: value for name, _, value in pairs}
