"""generate's options for an identity method and for style: weights, and their networks."""

import argparse
import ast
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from data_pipeline.examples.fields import Field
from data_pipeline.examples.identity.face_points import FacePoints
from data_pipeline.examples.identity.faces import Faces
from data_pipeline.pictures.reading import load_image, load_mask
from data_pipeline.records.schema import MAX_REFERENCES


def add_method_options(add: Callable) -> None:
    """``add``: a parser's add_argument."""
    add("--method", help="identity method; default: that of the weights")
    add(
        "--method-weights",
        help="working directory of a training run (RUN, or RUN/checkpoints/STEP), a PhotoMaker "
        "file, v1 or v2, an IP-Adapter file, InstantID's ip-adapter.bin (with "
        "--method-controlnet), or a PuLID file (with --clip)",
    )
    add(
        "--image-encoder",
        default="",
        help="folder of the CLIP image encoder that belongs to the method's weights; default: what "
        "the run was trained with, for a file the base's image_encoder or a PhotoMaker file's own. "
        "FaceID, PhotoMaker v2, InstantID, PuLID and others that read faces by a recogniser have "
        "no default: they need its file",
    )
    add(
        "--clip",
        default="",
        metavar="DIR|FILE",
        help="the CLIP image encoder, where --image-encoder is a face recogniser: its folder, for "
        "PuLID EVA-CLIP's file",
    )
    add(
        "--method-controlnet",
        default="",
        metavar="DIR",
        help="InstantID's IdentityNet, the ControlNet that belongs to its weights",
    )
    add(
        "--method-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the method by its config's key; may be repeated: references=face, "
        "aligned (Plus-Face) or whole for an IP-Adapter, base or plus; shortcut=False (version 1) "
        "and s_scale=NUMBER for FaceID Plus; instantid_references=sequence; for PuLID "
        "pulid_release=style and others (an unknown name lists those of the method)",
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
        help=f"one to {MAX_REFERENCES} images that --style reads, for all prompts",
    )
    add(
        "--style-region",
        default="",
        metavar="FILE",
        help="mask of where --style acts (white on black); default: everywhere",
    )


def load_method(pipe: Any, args: argparse.Namespace) -> None:
    """Load what ``--method-weights`` and ``--style`` name, if anything."""
    if args.method_weights:
        networks = {"encoder": args.image_encoder, "clip": args.clip}
        networks["controlnet"] = args.method_controlnet
        chosen = chosen_options(args)
        pipe.load_method(args.method, args.method_weights, **networks, options=chosen)
    if args.style:
        pipe.load_style(args.style, encoder=args.style_encoder)


def check_files(args: argparse.Namespace) -> None:
    """FileNotFoundError for weights that are not there, before a base is loaded."""
    weights = args.method_weights
    if weights and not Path(weights).exists() and Path(weights).parent.name != "checkpoints":
        raise FileNotFoundError(f"--method-weights {weights}: no such file or folder")
    if args.style and not Path(args.style).is_file():
        raise FileNotFoundError(f"--style {args.style}: no such file")


def style_arguments(args: argparse.Namespace, count: int) -> dict:
    """What a call for ``count`` prompts gets of the style.

    Raises:
        ValueError: images without an adapter, or too many; a region without images.
        ImageError: an image cannot be read.
    """
    if not args.style_image:
        if args.style_region:
            raise ValueError(f"--style-region {args.style_region}: give --style-image too")
        return {}
    if not args.style:
        raise ValueError(f"--style-image {args.style_image[0]}: no adapter reads it; give --style")
    if len(args.style_image) > MAX_REFERENCES:
        raise ValueError(
            f"{len(args.style_image)} times --style-image: give one to {MAX_REFERENCES}"
        )
    # Read here, so that one that cannot be read is said before a base is loaded.
    given: dict[str, list] = {"style_image": [list(map(load_image, args.style_image))] * count}
    if args.style_region:
        given["style_region"] = [load_mask(args.style_region)] * count
    return given


def chosen_options(args: argparse.Namespace) -> dict[str, Any]:
    """The method's settings by name; ValueError for one that is given twice."""
    chosen: dict[str, Any] = {}
    for item in args.method_option:
        name, value = parse_option(item)
        if name in chosen:
            raise ValueError(f"--method-option {item}: {name} is given already")
        chosen[name] = value
    return chosen


def add_face_points(fields: Iterable[Field], given: dict[str, Any]) -> None:
    """Add the points of each prompt's first reference, as InstantID's own scripts draw them.

    Unless ``--input`` gives others. Several people are not where their photographs show them.

    Args:
        given: the call's inputs by name, among them the located faces of each prompt's people.
    """
    fields = list(fields)
    for points in fields:
        if not isinstance(points, FacePoints) or points.name in given:
            continue
        faces = [given.get(each.name) for each in fields if isinstance(each, Faces)]
        located = [people for people in faces[0] or () if len(people) == 1] if faces else []
        if located:
            given[points.name] = [people[0][0] for people in located]
        else:
            warnings.warn(
                f"no {points.name}: give --input {points.name}=FILE, a picture of them or a *.json "
                "file with five (x, y) for each face, or the method's ControlNet adds nothing",
                stacklevel=2,
            )


def parse_option(item: str) -> tuple[str, Any]:
    """NAME=VALUE, where a number, True or False is read as such."""
    name, equals, value = item.partition("=")
    if not (name and equals):
        raise ValueError(f"--method-option {item}: write NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return name, value
