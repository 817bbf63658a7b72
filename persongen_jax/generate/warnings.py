"""Warnings of generate about options without effect."""

import argparse
from collections.abc import Iterable

from data_pipeline.examples.fields import Field
from data_pipeline.examples.identity.bodies import Bodies
from data_pipeline.examples.identity.faces import Faces


def ineffective_options(args: argparse.Namespace) -> list[str]:
    """Options without effect; pipeline/checks.py reports a call's own arguments."""
    lines = []
    if not args.reference:
        given = {"--detector": args.detector, "--no-crop": args.no_crop}
        given |= {"--face-box": args.face_box}
        lines += [f"{name} has no effect without --reference" for name in given if given[name]]
    elif args.no_crop and args.detector:
        lines.append(f"--detector {args.detector} has no effect: --no-crop detects no face")
    if args.pose is None:
        # References may be bodies, whose joints the network finds.
        given = {} if args.reference else {"--pose-net": args.pose_net}
        given |= {"--pose-style": args.pose_style}
        given |= {"--pose-out": args.pose_out}
        lines += [f"{name} has no effect without --pose" for name in given if given[name]]
    if not args.method_weights:
        given = {"--image-encoder": args.image_encoder, "--clip": args.clip}
        given |= {"--method-controlnet": args.method_controlnet}
        given |= {"--method-option": args.method_option}
        lines += [f"{name} has no effect without --method-weights" for name in given if given[name]]
    if args.style_encoder and not args.style:
        lines.append("--style-encoder has no effect without --style")
    return lines


def ineffective_for(args: argparse.Namespace, fields: Iterable[Field]) -> list[str]:
    """Options without effect on a pipeline whose method reads these fields."""
    fields, lines = list(fields), []
    aligns = any(isinstance(field, Faces) for field in fields)
    if args.reference and args.face_box and args.detector and not aligns:
        lines.append(
            f"--detector {args.detector} has no effect: --face-box says where the faces are"
        )
    # Otherwise --pose reads it, or ``ineffective_options`` says it.
    if args.pose is None and args.pose_net and args.reference:
        if not any(isinstance(field, Bodies) for field in fields):
            lines.append(
                "--pose-net has no effect: the loaded method reads no bodies, and there is no "
                "--pose"
            )
    return lines
