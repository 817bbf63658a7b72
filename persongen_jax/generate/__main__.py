"""Generate images from the command line.

    python -m persongen_jax.generate --base /path/to/sdxl --prompt "a lighthouse at dusk"
    python -m persongen_jax.generate --base /path/to/sdxl --method-weights photomaker-v1.bin \\
        --reference me.jpg --prompt "a man img in a space suit"

With --run it generates from a run trained on attributes; see generate/attributes.py.
"""

import argparse
import functools
import os
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from data_pipeline.examples.fields import FieldError
from data_pipeline.examples.identity.bodies import Bodies
from data_pipeline.examples.identity.faces import Faces
from data_pipeline.prompts import join_parts
from data_pipeline.records.schema import MAX_REFERENCES, PARTS
from data_pipeline.text_files import read_lines
from persongen_jax.cli import add_mark_option, command
from persongen_jax.diffusion.options import SamplingOptions, add_options, given_options
from persongen_jax.generate.base import (
    add_base_options,
    open_base_pipeline,
    parse_embedding,
    parse_scales,
    scheduler_options,
)
from persongen_jax.generate.control import add_control_options, control_arguments
from persongen_jax.generate.method import (
    add_face_points,
    add_method_options,
    check_files,
    chosen_options,
    load_method,
    style_arguments,
)
from persongen_jax.generate.notes import make_notes
from persongen_jax.generate.pose import (
    add_pose_options,
    find_bodies,
    find_given_pose,
    use_pose,
)
from persongen_jax.generate.warnings import ineffective_for, ineffective_options
from persongen_jax.weights.licences import add_terms_option


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m persongen_jax.generate",
        description=__doc__.split("\n")[0] + " For a run on attributes: --run DIR --help.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add_base_options(add)
    add(
        "--prompt",
        action="append",
        default=[],
        help="plain text, may be repeated; (weights:1.5), [x], BREAK, <lora:x:1> and "
        "embedding:x are not understood; a warning says so",
    )
    add("--prompt-file", type=Path, help="text file, a prompt per line")
    for part in PARTS:
        add(
            f"--{part}",
            action="append",
            default=[],
            help=f"description of the {part}, one for all prompts or one each; joined to the "
            "prompt if no method reads it separately",
        )
    add(
        "--part",
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help="an additional prompt of this name, which the method must read; may be repeated: one "
        "per name for all prompts, or one for each prompt",
    )
    add(
        "--input",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="another input of the method by this name: an image, such as a pose to follow, or "
        "points (*.json, a list of [x, y] in pixels); as often as --part",
    )
    add_pose_options(add)
    add("--negative-prompt", help="what to steer away from")
    add("--out", type=Path, default=Path("outputs"), help="folder for the images")
    add_options(parser, seed=42)
    add("--karras", action="store_true", help="Karras sigmas (euler, dpmpp_2m)")
    add("--timestep-spacing", choices=("leading", "trailing", "linspace"))
    add("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16, on a CPU float32")
    add("--vae-dtype", choices=("float32", "bfloat16"), default="float32")
    add(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[@WEIGHT]",
        help="LoRA file; may be repeated",
    )
    add(
        "--embedding",
        action="append",
        default=[],
        metavar="FILE[:WORD]",
        help="file with a word's embeddings (Textual Inversion), or diffusers' folder of two; WORD "
        "if not its own; may be repeated",
    )
    add_control_options(add)
    add_method_options(add)
    add(
        "--reference",
        action="extend",
        nargs="+",
        default=[],
        metavar="FILE[@REGION]",
        help=f"one to {MAX_REFERENCES} images of the person, or a folder of them; several people "
        "in one image: each file with the mask of where they may appear (white on black; one "
        "mask, one person), for methods with an attention branch that reads the person",
    )
    add(
        "--face-box",
        action="append",
        default=[],
        metavar="X0,Y0,X1,Y1",
        help="where the face is in a reference, in pixels of the upright image, instead of finding "
        "it; may be repeated, one for each file, in their order",
    )
    add(
        "--detector",
        metavar="NAME[:PATH]",
        help="finds the face in references: yunet, FILE.onnx (OpenCV's YuNet), insightface[:DIR], "
        "keypoints:DIR; auto, the default: the base's own, else InsightFace where its "
        "models are, else YuNet",
    )
    add(
        "--no-crop",
        action="store_true",
        help="references are face crops already; aligned ones for methods that align faces",
    )
    add(
        "--scale",
        action="append",
        default=[],
        metavar="NAME=VALUE[@START-END]",
        help="factor of what the method adds, by name: identity, lora, and every stream and map "
        "of the method, such as background (an unknown name lists the known ones); may be "
        "repeated. With a range it is for these steps, as fractions of all of them: "
        "identity=0.8@0.3-1",
    )
    add_mark_option(parser)
    add_terms_option(parser.add_argument)
    add("--no-compilation-cache", action="store_true", help="compile again in every run")
    return parser.parse_args(argv)


def read_prompts(args: argparse.Namespace) -> list[str]:
    prompts = list(args.prompt)
    if args.prompt_file:
        lines = read_lines(args.prompt_file)
        prompts += [line.strip() for line in lines if line.strip()]
        if not any(map(str.strip, lines)):
            raise ValueError(f"{args.prompt_file}: no prompt in it; write one on each line")
    if not prompts:
        raise ValueError("no prompt: give --prompt TEXT or --prompt-file FILE")
    return prompts


def read_parts(args: argparse.Namespace, count: int) -> dict[str, list[str]]:
    """The given --background and --body: a text for each of the ``count`` prompts."""
    given = {name: getattr(args, name) for name in PARTS if getattr(args, name)}
    return {name: one_per_prompt(f"--{name}", texts, count) for name, texts in given.items()}


def read_named(option: str, items: list[str], count: int) -> dict[str, list[str]]:
    """NAME=VALUE options by name: a value for each of the ``count`` prompts."""
    values = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"{option} {item}: write NAME=VALUE")
        values.setdefault(name.strip(), []).append(value)
    return {name: one_per_prompt(f"{option} {name}", own, count) for name, own in values.items()}


def one_per_prompt(what: str, values: list, count: int) -> list:
    """``count`` values, from one for all or one each."""
    if len(values) not in (1, count):
        raise ValueError(
            f"{what} is given {len(values)} times for {count} prompts: give it once or once each"
        )
    return values * count if len(values) == 1 else values


def split_parts(
    prompts: Sequence[str], parts: Mapping[str, list[str]], streams: Collection[str]
) -> tuple[list[str], dict[str, list[str]]]:
    """Parts that the loaded method reads stay separate; all others are joined to the prompts."""
    apart = {name: texts for name, texts in parts.items() if name in streams}
    others = [texts for name, texts in parts.items() if name not in streams]
    return [join_parts(*texts) for texts in zip(prompts, *others, strict=True)], apart


def check_named(pipe: Any, named: dict, inputs: dict) -> None:
    """ValueError naming what the loaded method reads if it does not read one of these."""
    read = pipe.conditioner.inputs
    others = [name for name in read if name not in pipe.text.further]
    for option, given, known in (("--part", named, pipe.text.further), ("--input", inputs, others)):
        for name in given:
            if pipe.method is None:
                raise ValueError(f"{option} {name}: no method is loaded; give --method-weights")
            if name not in known:
                reads = ", ".join(known) or "nothing by this option"
                raise ValueError(f"{option} {name}: the loaded method reads {reads}")


def make_pipeline(args: argparse.Namespace, options: SamplingOptions) -> Any:
    pipe = open_base_pipeline(args, options)
    load_method(pipe, args)
    for item in args.lora:
        path, weight = parse_lora(item)
        name = path if path not in pipe.adapters else f"{path}, number {len(pipe.adapters) + 1}"
        pipe.load_lora(path, weight=weight, name=name)
    for item in args.embedding:
        path, word = parse_embedding(item)
        pipe.load_textual_inversion(path, word, name=item)
    for number, path in enumerate(args.controlnet, 1):
        twice = path in args.controlnet[: number - 1]
        pipe.load_controlnet(path, name=f"{path}, number {number}" if twice else path)
    return pipe


def parse_lora(item: str) -> tuple[str, float]:
    """FILE or FILE@WEIGHT; an @ may also be part of the file's name."""
    path, at, weight = item.rpartition("@")
    if not item or (at and not path):
        raise ValueError(f"--lora {item!r}: give a file, or FILE@WEIGHT")
    if not at or Path(item).exists():
        return item, 1.0
    try:
        return path, float(weight)
    except ValueError as error:
        raise ValueError(f"--lora {item}: {weight!r} is not a number") from error


def generate(args: argparse.Namespace) -> list[Path]:
    from persongen_jax.generate.files import (
        locate_faces,
        parse_box,
        read_input,
        read_photographs,
        read_references,
    )
    from persongen_jax.pipeline.images import image_size
    from persongen_jax.pipeline.saving import ImageFolder
    from persongen_jax.pipeline.watermark import has_room

    if not args.no_compilation_cache and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path.home() / ".cache" / "persongen_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    for line in ineffective_options(args):
        warnings.warn(line, stacklevel=1)
    prompts = read_prompts(args)
    count = len(prompts)
    parts, named = read_parts(args, count), read_named("--part", args.part, count)
    inputs = read_named("--input", args.input, count)
    twice = parts.keys() & named.keys()
    if twice:
        raise ValueError(f"--part {min(twice)}: given as --{min(twice)} too")
    options = SamplingOptions(
        **given_options(args),
        scheduler_options=scheduler_options(args),
        scales=parse_scales(args.scale),
        output_type="np",
    )
    if args.reference and not args.method_weights:
        raise ValueError("--reference needs a method that reads it; give --method-weights")
    if args.method and not args.method_weights:
        raise ValueError(f"--method {args.method}: it needs its weights; give --method-weights")
    check_files(args)
    control, style = control_arguments(args), style_arguments(args, count)
    if args.pose and "pose" in inputs:
        raise ValueError("--input pose: --pose draws that image already; give one of the two")
    pose = find_given_pose(args)
    folder = ImageFolder(args.out, not args.no_mark)
    read = functools.cache(read_input)
    given: dict[str, Any] = {name: [read(path) for path in own] for name, own in inputs.items()}
    references, regions = None, None
    where: dict[str, Any] = {
        "base": args.base_config or args.base,
        "detector": args.detector or "auto",
        "crop": not args.no_crop,
        "boxes": [parse_box(text) for text in args.face_box],
    }
    if args.reference:
        show = chosen_options(args).get("references", "")
        references, regions = read_references(
            args.reference, args.method_weights, **where, show=show
        )
    pipe = make_pipeline(args, options)
    if pipe.method is not None and options.start_merge_step is None:
        options = replace(options, start_merge_step=pipe.method.start_merge_step)
    for line in ineffective_for(args, pipe.fields):
        warnings.warn(line, stacklevel=1)
    if pipe.reads_references and not references:
        raise ValueError(f"--method-weights {args.method_weights}: give --reference too")
    check_named(pipe, named, inputs)
    texts, apart = split_parts(prompts, parts, pipe.streams)
    apart |= named
    notes, paths = make_notes(args, options, prompts, parts | named), []

    def save(image):
        note = notes[len(paths)]
        note["settings"]["watermark"] = not args.no_mark and has_room(*image.shape[:2])
        paths.append(folder.save(image, note))

    given |= {"references": references and [references] * count, **apart}
    for each in pipe.fields:  # the references whole, unless --input has other photographs
        if each.by_name and each.name not in given:
            whole: list | None
            if isinstance(each, Faces):
                whole = locate_faces(args.reference, **where)
            elif isinstance(each, Bodies):
                whole = find_bodies(read_photographs(args.reference), args.pose_net)
            else:
                whole = read_photographs(args.reference)
            given[each.name] = whole and [whole] * count
    add_face_points(pipe.fields, given)
    given |= {"regions": regions and [regions] * count, **control, **style}
    if pose is not None:
        size = image_size(pipe.base, args.height, args.width)
        given |= use_pose(pose, pipe, args, size, count)
    run_pipeline(pipe, args, options, texts, given, save)
    return paths


def run_pipeline(
    pipe: Any,
    args: argparse.Namespace,
    options: SamplingOptions,
    prompts: list[str],
    given: dict,
    save: Callable[[np.ndarray], object],
) -> None:
    """Pass each image, uint8 [h, w, 3], to ``save`` when it is done; with a progress bar.

    ``given``: additional arguments of the pipeline, by name.
    """
    count = len(prompts) * args.images_per_prompt
    batches = -(-count // pipe.batch_size_for(args.batch_size, count))
    # The delay keeps the bar away from error messages: it appears with the first steps.
    bar = tqdm(total=batches * args.steps, unit="step", desc=f"{count} images", delay=1e-3)

    def save_batch(images):
        for image in (images * 255).round().astype("uint8"):
            save(image)

    try:
        pipe(
            prompts,
            args.negative_prompt,
            **given,
            options=options,
            progress=bar.update,
            on_batch=save_batch,
        )
    except FieldError as error:
        raise ValueError(f"{error} (here: --input NAME=FILE)") from error
    bar.close()


@command
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if any(item.split("=")[0] == "--run" for item in argv):
        from persongen_jax.generate import attributes as chosen

        parse, run = chosen.parse_arguments, chosen.generate
    else:
        parse, run = parse_arguments, generate
    print("\n".join(map(str, run(parse(argv)))))


if __name__ == "__main__":
    main()
