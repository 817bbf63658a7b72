"""The skeleton after the person in a photograph, for generate's --pose.

A pose network finds one person, the most prominent one; the skeleton is drawn at the size of the
images that are generated, of the middle of the photograph, as control images are cut.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from data_pipeline.examples.identity.bodies import Body
from data_pipeline.files import atomic_write
from data_pipeline.pictures.reading import load_image
from data_pipeline.pictures.transforms import plan_crop
from data_pipeline.pose.body18 import COUNT, LIMBS, from_coco17, inside
from data_pipeline.pose.limbs import STYLES, widths_for
from data_pipeline.pose.skeleton import draw_body18
from persongen_jax.weights.licences import say

if TYPE_CHECKING:
    from persongen_jax.pose_nets import PoseNet


class NoPersonFound(ValueError):
    """A photograph in which the network finds too few joints for a skeleton."""


class FoundPose(NamedTuple):
    """A person's joints in a photograph.

    joints: [18, 2] (x, y) in its pixels, as data_pipeline.pose.body18.NAMES. seen: [18] bool.
    shape: (height, width) of the photograph. name: of it, in messages.
    """

    joints: np.ndarray
    seen: np.ndarray
    shape: tuple[int, int]
    name: str


def pose_image(
    photo: Any, net: "PoseNet", height: int, width: int, style: str = "openpose"
) -> Image.Image:
    """The skeleton of the most prominent person in a photograph, RGB of ``height`` and ``width``.

    The photograph is scaled to cover that size and its middle is taken.

    Args:
        photo: an image in any form that data_pipeline.pictures.reading.load_image reads.
        style: of the limbs (data_pipeline/pose/limbs.py).

    Raises:
        ImageError: the photograph cannot be read.
        NoPersonFound: in it, or in its middle.
    """
    return draw_pose(find_pose(photo, net), height, width, style)


def find_pose(photo: Any, net: "PoseNet") -> FoundPose:
    """The joints of the most prominent person; raises as pose_image does."""
    image = load_image(photo)
    name = str(photo) if isinstance(photo, (str, Path)) else "the photograph"
    shape = image.shape[:2]
    (joints,), (scores,) = net.points([image])
    found = FoundPose(*from_coco17(joints, scores * inside(joints, shape)), shape, name)
    if not _limbs(found.seen):
        raise NoPersonFound(
            f"no person found in {name} ({shape[1]}x{shape[0]} pixels): give a photograph that "
            "shows one larger"
        )
    return found


def draw_pose(found: FoundPose, height: int, width: int, style: str = "openpose") -> Image.Image:
    """The skeleton at this size; raises as pose_image does."""
    crop = plan_crop(found.shape, None, (height, width))
    joints = crop.move(found.joints)
    if not _limbs(found.seen & inside(joints, crop.size)):
        raise NoPersonFound(
            f"{found.name} ({found.shape[1]}x{found.shape[0]} pixels): the person is not in its "
            f"middle, which is taken for {width}x{height}; crop it to the person"
        )
    widths = widths_for(height, width, style)
    drawn = draw_body18(joints[None], found.seen[None], height, width, widths)
    return Image.fromarray(drawn)


def _limbs(seen) -> bool:
    return any(seen[first] and seen[second] for first, second in LIMBS)


def find_bodies(people: list[list[np.ndarray]], pose_net: str | None) -> list[list[Body]]:
    """Photographs by person with the joints that the network finds in each, for BoLID.

    Args:
        pose_net: as --pose-net names it; None: the joints are unknown, which is said, as is a
            photograph without any.
    """
    from persongen_jax.pose_nets import open_pose_net

    if not pose_net:
        print("bodies: their joints are unknown; --pose-net finds them", file=sys.stderr)
        return [[Body(image) for image in own] for own in people]
    net = open_pose_net(pose_net)
    if net.licence:
        say(f"joints of bodies are found by {net.licence}")
    found = [[Body(*each) for each in zip(own, *net(own), strict=True)] for own in people]
    for person, own in enumerate(found, 1):
        for number, body in enumerate(own, 1):
            if not np.any(body.visibility):
                whose = f" of person {person}" if len(people) > 1 else ""
                print(f"bodies: no joint is found in reference {number}{whose}", file=sys.stderr)
    return found


# ---- The command's options ---------------------------------------------------------------------


def add_pose_options(add: Callable) -> None:
    """``add``: a parser's add_argument."""
    add(
        "--pose",
        metavar="FILE",
        help="photograph whose most prominent person gives the pose: its skeleton is the control "
        "image of a ControlNet, or the input pose of a method, for all prompts",
    )
    add(
        "--pose-net",
        metavar="NAME",
        help="finds its joints, and those of references for a method that reads bodies: "
        "movenet:FILE.json or keypoints:DIR",
    )
    add("--pose-style", choices=STYLES, help="of the skeleton's limbs; default: openpose")
    add("--pose-out", type=Path, metavar="FILE.png", help="write the skeleton there")


def find_given_pose(args: argparse.Namespace) -> FoundPose | None:
    """What --pose and --pose-net say, before a base is loaded; None without --pose.

    Raises:
        ValueError: options that do not fit, and as find_pose and open_pose_net.
    """
    from persongen_jax.pose_nets import open_pose_net

    if args.pose is None:
        return None
    if not args.pose_net:
        raise ValueError(
            f"--pose {args.pose}: give --pose-net too, movenet:FILE.json for photographs or "
            "keypoints:DIR for drawn people; it finds the joints"
        )
    out = args.pose_out
    if out and (out.suffix.lower() != ".png" or not out.parent.is_dir()):
        raise ValueError(f"--pose-out {out}: give a .png file in a folder that exists")
    load_image(args.pose)  # A photograph that cannot be read is said before a network is opened.
    net = open_pose_net(args.pose_net)
    if net.licence:
        say(f"the pose is found by {net.licence}")
    found = find_pose(args.pose, net)
    print(
        f"pose: {found.seen.sum()} of {COUNT} joints of the most prominent person in {args.pose}; "
        "the network looks for no other",
        file=sys.stderr,
    )
    return found


def use_pose(
    found: FoundPose, pipe: Any, args: argparse.Namespace, size: tuple[int, int], count: int
) -> dict[str, Any]:
    """The pipeline's arguments that carry the skeleton, for ``count`` prompts.

    It writes --pose-out. ``size``: (height, width) of the generated images.

    Raises:
        ValueError: nothing that is loaded reads a skeleton; NoPersonFound as draw_pose.
    """
    picture = draw_pose(found, *size, args.pose_style or "openpose")
    if args.pose_out:
        with atomic_write(args.pose_out) as partial:
            picture.save(partial, format="png")
    if len(args.controlnet) > len(args.control_image):  # the first of them reads it
        images = [picture, *args.control_image]
        return {"control_image": images if len(images) > 1 else picture}
    if "pose" in pipe.conditioner.inputs:
        return {"pose": [picture] * count}
    raise ValueError(
        f"--pose {args.pose}: no ControlNet is loaded that follows a skeleton, and no method that "
        "reads the input pose: load one of them, or leave --pose out"
    )
