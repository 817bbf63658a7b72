"""Images from a run trained on attributes: generated, interpolated, edited.

    python -m persongen_jax.generate --run runs/attributes/drawn_faces \\
        --attributes "glasses=1,beard=0" --images 16
    python -m persongen_jax.generate --run runs/attributes/drawn_faces \\
        --interpolate "smiling=0" "smiling=1" --frames 9
    python -m persongen_jax.generate --run runs/attributes/drawn_faces \\
        --edit face.png --attributes "glasses=1"
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipeline.pictures.reading import image_size
from persongen_jax.cli import add_mark_option
from persongen_jax.diffusion.options import SamplingOptions, add_options, given_options
from persongen_jax.evaluation.sampled import as_rgb
from persongen_jax.pipeline.attributes import AT_ONCE, SEED, AttributePipeline
from persongen_jax.pipeline.saving import ImageFolder

FRAME_MS = 200  # of the animation
DEFAULTS = {"images": 1, "frames": 9, "seed": SEED, "batch_size": AT_ONCE}
FLAGGED = ("num_inference_steps", "guidance_scale", "scheduler", "seed", "batch_size")
GRID_SIDE = 64  # smaller images are enlarged in grids, strips and animations


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m persongen_jax.generate --run DIR",
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--run", required=True, help="working directory of a training run on attributes")
    add("--step", type=int, help="step of the checkpoint; default: the newest")
    add(
        "--attributes",
        action="append",
        default=[],
        metavar="REQUEST",
        help='such as "glasses=1,beard=0" or "digit=7"; omitted attributes are random; may '
        "be repeated",
    )
    # Options without effect in one of the three modes default to None: DEFAULTS has the values.
    add("--images", type=int, help="per request, with --interpolate strips; default: 1")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--interpolate",
        nargs=2,
        metavar=("FROM", "TO"),
        help="images between two requests, from the same noise: a strip, and an animated WebP",
    )
    what.add_argument("--edit", metavar="IMAGE", help="change this image, by DDIM inversion")
    add("--frames", type=int, help="of --interpolate; default: 9")
    add("--source", default="", metavar="REQUEST", help="what the image of --edit shows")
    add("--out", type=Path, default=Path("outputs"), help="folder for the images")
    defaults = {"scheduler": "ddim", "seed": str(SEED), "batch_size": str(AT_ONCE)}
    defaults["guidance_scale"] = "3, or 1 for a run that cannot be guided"
    add_options(parser, FLAGGED, **defaults)
    add_mark_option(parser)
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """ValueError for options that exclude each other, or would have no effect."""
    SamplingOptions(**given_options(args))
    for name in ("images", "frames"):
        number = getattr(args, name)
        if number is not None and number < 1:
            raise ValueError(f"--{name.replace('_', '-')} {number}: at least 1")
    if args.interpolate and args.attributes:
        raise ValueError("--attributes has no effect on --interpolate FROM TO; leave it out")
    if args.source and args.edit is None:
        raise ValueError("--source says what the image of --edit shows; give --edit too")
    if args.frames is not None and not args.interpolate:
        raise ValueError("--frames goes with --interpolate FROM TO; give it too")
    if args.edit is None:
        return
    if len(args.attributes) != 1:
        raise ValueError("--edit needs --attributes once: what the image should show")
    unread = ("scheduler", "images", "seed", "batch_size")
    given = [f"--{name.replace('_', '-')}" for name in unread if getattr(args, name) is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)}: without effect on --edit, which makes one image by DDIM, from "
            "the image's own noise; leave it out"
        )


def generate(args: argparse.Namespace) -> list[Path]:
    check(args)
    for name, value in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    pipe = AttributePipeline.from_run(args.run, args.step)
    if args.edit is not None:
        return edit(pipe, args)
    return interpolate(pipe, args) if args.interpolate else generate_images(pipe, args)


def generate_images(pipe: AttributePipeline, args: argparse.Namespace) -> list[Path]:
    """A file per image, and a grid of all with a row per request."""
    requests = args.attributes or [""]
    n = len(requests) * args.images
    with Bar(args, -(-n // min(n, args.batch_size)), f"{n} images") as progress:
        images = pipe(requests, images=args.images, progress=progress, **given_options(args))
    folder = ImageFolder(args.out, not args.no_mark)
    paths = []
    for i, image in enumerate(as_rgb(images)):
        request, index = requests[i // args.images], i % args.images
        paths.append(folder.save(image, {**note(args), "attributes": request, "index": index}))
    if n > 1:
        columns = args.images if len(requests) > 1 else int(np.ceil(np.sqrt(n)))
        name = f"grid_{paths[0].stem}.png"
        paths.append(folder.write(grid(images, columns), args.out / name))
    return paths


def interpolate(pipe: AttributePipeline, args: argparse.Namespace) -> list[Path]:
    """A strip and an animation per noise."""
    one_sided = pipe.one_sided_attributes(*args.interpolate)
    if one_sided:
        print(f"{', '.join(one_sided)}: the other end does not set it and starts halfway")
    folder, paths = ImageFolder(args.out, not args.no_mark), []
    batches = args.images * -(-args.frames // min(args.frames, args.batch_size))
    with Bar(args, batches, f"{args.images} strips") as progress:
        for index in range(args.images):
            frames = pipe.interpolate(
                *args.interpolate,
                frames=args.frames,
                index=index,
                progress=progress,
                **given_options(args),
            )
            said = {**note(args), "from": args.interpolate[0], "to": args.interpolate[1]}
            path = folder.save(grid(frames, args.frames), {**said, "index": index})
            paths += [path, path.with_suffix(".webp")]
            there = enlarged(as_rgb(frames))
            back = there[-2:0:-1]
            folder.write.animation([*there, *back], paths[-1], FRAME_MS)
    return paths


def edit(pipe: AttributePipeline, args: argparse.Namespace) -> list[Path]:
    height, width = image_size(args.edit)
    if (height, width) != pipe.size[:2]:
        print(
            f"{args.edit}: the central square of {width}x{height} is scaled to "
            f"{pipe.size[1]}x{pipe.size[0]}, the run's size",
            file=sys.stderr,
        )
    with Bar(args, 2, "1 image") as progress:
        image = pipe.edit(
            args.edit,
            args.attributes[0],
            source=args.source,
            progress=progress,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance_scale,
        )
    said = {"picture": args.edit, "attributes": args.attributes[0], "source": args.source}
    folder = ImageFolder(args.out, not args.no_mark)
    return [folder.save(as_rgb(image[None])[0], {**note(args), **said})]


def note(args: argparse.Namespace) -> dict:
    """The notes on how an image was made."""
    kept = ("run", "step", "steps", "guidance_scale", "scheduler")
    return {"seed": args.seed, "settings": {name: getattr(args, name) for name in kept}}


class Bar:
    """A progress bar over batches of ``args.steps`` steps; yields a function that advances it."""

    def __init__(self, args: argparse.Namespace, batches: int, said: str):
        # The delay keeps the bar away from error messages: it appears with the first steps.
        self._bar = tqdm(total=batches * args.steps, unit="step", desc=said, delay=1e-3)

    def __enter__(self) -> Callable:
        return self._bar.update

    def __exit__(self, *_):
        self._bar.close()


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 [n, h, w, c] to a grid, uint8 [rows * h, columns * w, 3]; missing ones are white."""
    images = enlarged(as_rgb(images))
    n, height, width, _ = images.shape
    rows = -(-n // columns)
    filled = np.full((rows * columns, height, width, 3), 255, np.uint8)
    filled[:n] = images
    filled = filled.reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    return filled.reshape(rows * height, columns * width, 3)


def enlarged(images: np.ndarray) -> np.ndarray:
    """Small images enlarged by a whole factor, so that one can see them."""
    factor = max(1, GRID_SIDE // images.shape[1])
    return images.repeat(factor, axis=1).repeat(factor, axis=2)
