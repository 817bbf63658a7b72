"""Measure a training run, published weights, or folders of images; compare and rate them.

    python -m persongen_jax.evaluate --run runs/photomaker_bg --images-each 10
    python -m persongen_jax.evaluate --weights photomaker=photomaker-v1.bin \\
        --weights ip_adapter=ip-adapter_sdxl.bin --base DIR --benchmark thesis --people FOLDER
    python -m persongen_jax.evaluate --compare runs/a_seed1 runs/a_seed2 runs/b_seed1 runs/b_seed2
    python -m persongen_jax.evaluate --images outputs --references photos --encoder clip=DIR
    python -m persongen_jax.evaluate --rate outputs/a outputs/b --references photos

The first form generates images and measures them by the run's own config (configs/base.py,
"Validation") unless options say otherwise; it prints a table and writes metrics.json and contact
sheets. The second does so with weight files, side by side (docs/published_weights.md). The third
reads existing measurements, joins runs of one method that differ by their seed, prints a table and
draws the trajectories. The fourth measures images that any tool made (docs/evaluate_folders.md),
and compares several folders in pairs. The last writes a page on which people rate two folders, and
reads their answers.
"""

import argparse
import warnings
from pathlib import Path

from persongen_jax.cli import add_mark_option, command
from persongen_jax.diffusion.options import add_validation_options
from persongen_jax.evaluation.benchmarks import BENCHMARKS
from persongen_jax.evaluation.comparison import compare_runs
from persongen_jax.evaluation.of_folders import score_folders
from persongen_jax.evaluation.of_run import evaluate_run
from persongen_jax.evaluation.of_weights import evaluate_weights
from persongen_jax.evaluation.rating.of_folders import PAIRS, rate_folders
from persongen_jax.evaluation.trajectories import SETS
from persongen_jax.parallel import distributed
from persongen_jax.weights.licences import add_terms_option


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m persongen_jax.evaluate",
        description=__doc__.split("\n")[0],
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", metavar="DIR", help="working directory of a training run")
    what.add_argument(
        "--weights",
        action="append",
        metavar="NAME=FILE",
        help="published weights, PhotoMaker's, an IP-Adapter's or PuLID's; may be repeated",
    )
    what.add_argument(
        "--compare",
        nargs="+",
        metavar="RUN",
        help="runs (their validation/metrics.jsonl, last step) or metrics files, each as PATH or "
        "NAME=PATH; those with one name are joined; default name: the method",
    )
    what.add_argument(
        "--images",
        nargs="+",
        metavar="DIR",
        help="folders of images, each as DIR or NAME=DIR; several are compared in pairs",
    )
    what.add_argument(
        "--rate",
        nargs=2,
        metavar="DIR",
        help="two folders of images, each as DIR or NAME=DIR, for people to rate",
    )
    add = parser.add_argument
    add("--step", type=int, metavar="N", help="step of the checkpoint or rows; default: newest")
    add("--out", type=Path, metavar="DIR", help="default: RUN/evaluation/step_N; evaluation")
    add("--base", metavar="DIR", help="SDXL directory, if it is no longer where it was")
    add("--id-encoder", metavar="DIR|FILE", help="CLIP image tower, likewise; EVA-CLIP for PuLID")
    add(
        "--face-encoder",
        metavar="FILE",
        help="face recogniser that the method reads, likewise; with --weights, that of "
        "FaceID, PhotoMaker v2 and PuLID",
    )
    add(
        "--sets",
        nargs="+",
        metavar="SET",
        help=f"only these: {', '.join(SETS)}, or SET=SOURCE to read it from elsewhere",
    )
    add("--gallery", metavar="SOURCE", help="the people that rank-1 searches; also with --images")
    add("--people-per-set", type=int, metavar="N", help="at most")
    add("--images-each", type=int, metavar="N", help="per person and prompt")
    add("--size", type=int, metavar="N", help="side of the images in pixels")
    add("--negative-prompt", metavar="TEXT", help='"" for none')
    add_validation_options(parser)
    add("--batch", type=int, metavar="N", help="images at once")
    add("--data", metavar="DATA", help="for a run on attributes, if its folder has moved")
    add("--csv", metavar="FILE", help="its table, likewise")
    add("--classifier", metavar="DIR", help="run of a classifier that judges attributes, likewise")
    add("--prompts", help='"thesis" or a JSON file')
    add("--clip", metavar="FILE|DIR", help="CLIP for CLIP-T and CLIP-I, see docs/formats.md")
    add("--dino", metavar="FILE|DIR", help="DINO's image encoder for DINO-I")
    add("--dinov2", metavar="FILE|DIR", help="DINOv2's image encoder for DINOv2-I")
    add("--inception", metavar="FILE", help="FID's Inception for FID, KID and Inception Score")
    add(
        "--fid-variant",
        metavar="TOOL",
        help="whose resize: clean, pytorch-fid, torch-fidelity; also with --images",
    )
    add("--lpips", metavar="DIR|FILE", help="LPIPS for diversity: a backbone and its heads")
    add("--cmmd-clip", metavar="FILE|DIR", help="CLIP ViT-L/14-336 for CMMD; default: --clip")
    add("--face-net", metavar="FILE", help="face recogniser for Face-Sim")
    add("--face-detector", help="face detector for Face-Sim")
    add("--pose-net", metavar="NAME", help="movenet:FILE or keypoints:DIR, for Pose_acc, PCK, OKS")
    add(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="what to measure, see metrics/registry.py; also with --images",
    )
    add(
        "--judges-are-inputs",
        nargs="*",
        metavar="NAME",
        help="metrics whose judge the method may read itself",
    )
    add("--pictures", action="store_true", help="with --run: also save each first image as a file")
    add_mark_option(parser)
    add_terms_option(parser.add_argument)
    add_weights_options(parser)
    add_folder_options(parser)
    add_rating_options(parser)
    return parser.parse_args(argv)


def add_weights_options(parser: argparse.ArgumentParser) -> None:
    """What --weights needs, in addition to --base and the options of a run."""
    add = parser.add_argument_group("with --weights").add_argument
    add("--benchmark", choices=list(BENCHMARKS), help="how to measure")
    add("--people", metavar="SOURCE", help="DIR/PERSON/*, DIR/SET/PERSON/*, or people:…")
    dtypes = ("float32", "bfloat16")
    add("--dtype", choices=dtypes, help="of the computation; default: bfloat16, on a CPU float32")


def add_rating_options(parser: argparse.ArgumentParser) -> None:
    """What --rate reads, in addition to --references and --out."""
    add = parser.add_argument_group("with --rate").add_argument
    add("--pairs", type=int, metavar="N", help=f"at most; default: {PAIRS}")
    add("--answers", nargs="+", type=Path, metavar="FILE", help="what raters have saved: read them")


def add_folder_options(parser: argparse.ArgumentParser) -> None:
    """What --images reads, in addition to --out, --gallery, --metrics and --fid-variant."""
    add = parser.add_argument_group("with --images").add_argument
    add(
        "--references",
        metavar="SOURCE",
        help="what the method read: DIR/PERSON/*, or people:…; also with --rate",
    )
    add("--real", metavar="SOURCE", help="other real pictures of the same people, likewise")
    add(
        "--encoder",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a judging network by the config's key, such as clip=DIR; may be repeated",
    )
    add(
        "--recogniser",
        action="append",
        default=[],
        metavar="FILE",
        help="of faces, as --face-net; may be repeated: metrics of faces are measured with each",
    )
    add("--json", type=Path, metavar="FILE", help="the figures; default: OUT/scores.json")
    add(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keeps features by the images' content; default: ~/.cache/persongen_jax/features",
    )


FOLDER_OPTIONS = ("references", "real", "encoder", "recogniser", "json", "cache")
WEIGHTS_OPTIONS = ("benchmark", "people", "dtype")
RATING_OPTIONS = ("pairs", "answers")
OF_OTHERS = {*FOLDER_OPTIONS, *WEIGHTS_OPTIONS, *RATING_OPTIONS}
# What each form is given.
FORMS = {
    "run": "the working directory of a training run",
    "weights": "NAME=FILE",
    "compare": "runs or metrics files",
    "images": "folders of images",
    "rate": "two folders of images",
}


def read_by(form: str, options: set[str]) -> tuple[set[str], str]:
    """(what of ``options`` a form reads, what to say of others)."""
    if form == "run":
        return options - OF_OTHERS, "with --run"
    if form == "weights":
        left = options - OF_OTHERS - {"step", "pictures"}
        return left | set(WEIGHTS_OPTIONS), "with --weights, which writes all images"
    if form == "compare":
        return {"step", "out"}, "with --compare, which reads existing measurements"
    if form == "rate":
        return {*RATING_OPTIONS, "references", "out", "seed"}, "with --rate, which measures nothing"
    why = "with --images, which generates nothing and takes networks by --encoder and --recogniser"
    return {*FOLDER_OPTIONS, "out", "gallery", "metrics", "fid_variant"}, why


def check_named(args: argparse.Namespace, form: str) -> None:
    """ValueError for an empty path, such as of a shell's variable that is not set.

    It would mean the current folder.
    """
    value = getattr(args, form)
    if not all([value] if isinstance(value, str) else value):
        raise ValueError(f"--{form}: an empty name; give {FORMS[form]}")


def warn_of_idle_options(args: argparse.Namespace, form: str) -> None:
    """A warning that names the options that the form does not read."""
    read, why = read_by(form, set(vars(args)))
    others = sorted(set(vars(args)) - {*read, form})
    values = {name: getattr(args, name) for name in others}
    given = [n for n, value in values.items() if value not in (None, []) and value is not False]
    idle = [f"--{name.replace('_', '-')}" for name in given]
    if idle:
        warnings.warn(f"{', '.join(idle)}: no effect {why}", stacklevel=1)


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    form = next(name for name in FORMS if getattr(args, name) is not None)
    check_named(args, form)
    warn_of_idle_options(args, form)
    if args.compare:
        compare_runs(args.compare, args.out or Path("evaluation"), args.step)
    elif args.images:
        score_folders(args)
    elif args.rate:
        rate_folders(args)
    else:
        with distributed.run_distributed():
            (evaluate_weights if args.weights else evaluate_run)(args)


if __name__ == "__main__":
    main()
