"""generate's options for an identity method: its weights, and the networks that belong to them."""

import argparse
import ast
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from data_pipeline.examples.fields import Field
from data_pipeline.examples.identity.face_points import FacePoints
from data_pipeline.examples.identity.faces import Faces


def add_method_options(add: Callable) -> None:
    """``add``: a parser's add_argument."""
    add("--method", help="identity method; default: that of the weights")
    add(
        "--method-weights",
        help="working directory of a training run (RUN, or RUN/checkpoints/STEP), a PhotoMaker v1 "
        "file, an IP-Adapter file, or InstantID's ip-adapter.bin (with --method-controlnet)",
    )
    add(
        "--image-encoder",
        default="",
        help="folder of the CLIP image encoder that belongs to the method's weights; default: what "
        "the run was trained with, for a file the base's image_encoder or a PhotoMaker file's own. "
        "FaceID and others that read faces by a recogniser have no default: they need its file",
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
        "--method-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the method by its config's key: instantid_references=sequence; may be "
        "repeated",
    )


def load_method(pipe: Any, args: argparse.Namespace) -> None:
    """Load what ``--method-weights`` names, if anything."""
    if args.method_weights:
        networks = {"encoder": args.image_encoder, "clip": args.clip}
        networks["controlnet"] = args.method_controlnet
        chosen = dict(map(parse_option, args.method_option))
        pipe.load_method(args.method, args.method_weights, **networks, options=chosen)


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
    except (ValueError, SyntaxError):
        return name, value
