"""generate's options for ControlNets."""

import argparse
from collections.abc import Callable
from typing import Any

from data_pipeline.pictures.reading import load_image


def add_control_options(add: Callable) -> None:
    """``add``: a parser's add_argument."""
    add(
        "--controlnet",
        action="append",
        default=[],
        metavar="DIR",
        help="ControlNet for SDXL: diffusers' directory, its weight file, or a run of the method "
        "controlnet; may be repeated, their effects add up",
    )
    add(
        "--control-image",
        action="append",
        default=[],
        metavar="FILE",
        help="what a ControlNet reads (a skeleton, edges, depth, ...); one for each --controlnet, "
        "in their order",
    )
    add(
        "--controlnet-conditioning-scale",
        "--controlnet-scale",
        type=float,
        nargs="+",
        metavar="NUMBER",
        help="factor of a ControlNet's effect, one for all or one each; default: 1",
    )
    for end, usual in (("start", 0), ("end", 1)):
        add(
            f"--control-guidance-{end}",
            type=float,
            nargs="+",
            metavar="FRACTION",
            help=f"fraction of the steps at which a ControlNet's effect {end}s; default: {usual}",
        )
    add(
        "--guess-mode",
        action="store_true",
        help="ControlNets act on the conditional side alone, and weakly on the first skips",
    )


SETTINGS = (
    "controlnet_conditioning_scale",
    "control_guidance_start",
    "control_guidance_end",
    "guess_mode",
)


def control_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The pipeline's arguments for ControlNets, without the image that --pose draws.

    Raises:
        ValueError: not one image for each ControlNet, or options without one.
        ImageError: an image cannot be read.
    """
    nets, images = len(args.controlnet), list(args.control_image)
    given = {name: getattr(args, name) for name in SETTINGS if getattr(args, name)}
    if not nets and (images or given):
        named = "--control-image" if images else f"--{min(given).replace('_', '-')}"
        raise ValueError(f"{named}: no ControlNet is loaded; give --controlnet DIR")
    if nets - len(images) not in ((0, 1) if args.pose else (0,)):
        raise ValueError(
            f"{len(images)} times --control-image for {nets} times --controlnet; give one each"
            + (", but for the first of them, which reads --pose" if args.pose else "")
        )
    if not nets:
        return {}
    for path in images:  # One that cannot be read is said before a base is loaded.
        load_image(path)
    alone = {
        name: value[0] if value is not True and len(value) == 1 else value
        for name, value in given.items()
    }
    if len(images) < nets:
        return alone
    return {"control_image": images if nets > 1 else images[0], **alone}
