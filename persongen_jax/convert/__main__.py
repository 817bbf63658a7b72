"""Inspect weight files, import public ones, and export a training run for other programs.

    python -m persongen_jax.convert inspect photomaker-v1.bin
    python -m persongen_jax.convert import photomaker-v1.bin photomaker.safetensors --base sdxl
    python -m persongen_jax.convert export --format kohya-lora runs/mini/photomaker lora.safetensors
    python -m persongen_jax.convert publish runs/mini/photomaker --repo me/adapter --dry_run

Nothing is written in part: if a key is missing, unexpected or misshapen, the command lists all of
them and stops. --dry_run does all the work and its checks, and leaves no file behind.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from persongen_jax.cli import command
from persongen_jax.convert.identify import count, identify, open_parts
from persongen_jax.convert.upgrade import upgrade_run
from persongen_jax.files import is_full
from persongen_jax.weights.errors import WeightsError
from persongen_jax.weights.files.source import TensorSource

SHOWN_NOTES = 200  # characters of one entry of a file's metadata


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m persongen_jax.convert",
        description=__doc__.split("\n")[0],
    )
    commands = parser.add_subparsers(dest="command", required=True)

    inspect = commands.add_parser("inspect", help="identify a file, directory or run")
    inspect.add_argument("path", type=Path)
    inspect.add_argument("--keys", action="store_true", help="list every tensor")

    bring = commands.add_parser("import", help="check a public file and write it as safetensors")
    bring.add_argument("path", type=Path, help="LoRA, adapter, checkpoint, recogniser, encoder")
    bring.add_argument("out", type=Path, help="*.safetensors; for a checkpoint a new directory")
    bring.add_argument("--base", type=Path, metavar="DIR", help="SDXL directory that it is for")

    export = commands.add_parser("export", help="write what a training run has learned")
    export.add_argument("--format", required=True, choices=_formats(), help="format of the file")
    export.add_argument("run", type=Path, help="the working directory of the run")
    export.add_argument("out", type=Path, help=".safetensors or .bin; for peft a new folder")
    export.add_argument("--step", type=int, metavar="N", help="of the checkpoint; default: newest")
    export.add_argument("--base", metavar="DIR", help="SDXL directory, if it has moved")
    export.add_argument("--id-encoder", metavar="DIR", help="CLIP image tower, likewise")
    export.add_argument(
        "--sgm_names",
        action="store_true",
        help="of a kohya-lora: name the UNet's blocks as kohya's own trainer does",
    )
    push = commands.add_parser("publish", help="put it on a Hub, private, with a model card")
    push.add_argument("run", type=Path, help="the working directory of the run")
    push.add_argument("--repo", required=True, metavar="USER/NAME", help="a new repository")
    push.add_argument("--public", action="store_true", help="for everybody; default: private")
    push.add_argument(
        "--images",
        action="store_true",
        help="also its validation sheets, which show references; no other picture ever",
    )
    push.add_argument("--format", default="", choices=_published(), help="default: what fits best")
    push.add_argument("--license", default="", metavar="ID", help="default: the base's own card's")
    push.add_argument("--base-model", default="", metavar="ID", help="the base's name on the Hub")
    push.add_argument("--prompt", default="", help="one that calls up what was trained")
    push.add_argument("--token-file", type=Path, metavar="FILE", help="default: $HF_TOKEN")
    push.add_argument("--step", type=int, metavar="N", help="of the checkpoint; default: newest")
    push.add_argument("--base", metavar="DIR", help="SDXL directory, if it has moved")
    push.add_argument("--id-encoder", metavar="DIR", help="CLIP image tower, likewise")
    push.add_argument("--dry_run", action="store_true", help="print files and card, upload nothing")

    upgrade = commands.add_parser("upgrade", help="rewrite earlier versions' runs to today's names")
    upgrade.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="working directories")

    for writes in (bring, export):
        writes.add_argument("--dry_run", action="store_true", help="check all, write nothing")
        writes.add_argument("--force", action="store_true", help="replace a file (no directory)")
    return parser.parse_args(argv)


def _formats() -> tuple[str, ...]:
    from persongen_jax.convert.exporting import FORMATS

    return FORMATS


def _published() -> tuple[str, ...]:
    from persongen_jax.convert.publishing import FILES

    return tuple(FILES)


# ---- inspect -----------------------------------------------------------------------------------


def inspect(path: str | Path, with_keys: bool = False) -> str:
    """What ``path`` is, in lines for the terminal."""
    found = identify(path)
    sources = open_parts(path)
    try:
        tensors, numbers, stored, dtypes = count(sources)
        lines = [str(path), f"  what: {found.what}"]
        lines += [f"  {name}: {value}" for name, value in found.facts.items()]
        lines += [
            f"  size: {tensors:,} tensors, {numbers:,} numbers, {readable(stored)}",
            f"  dtypes: {', '.join(f'{name} ({n})' for name, n in dtypes.items()) or 'none'}",
            f"  licence: {found.licence}",
        ]
        for part, source in sources.items():
            front = f"{part}/" if part else ""
            notes = {k: v for k, v in source.metadata.items() if k != "format"}
            lines += [f"  note {front}{key}: {shorten(text)}" for key, text in notes.items()]
            lines += key_lines(source, front) if with_keys else group_lines(source, front)
        return "\n".join(lines)
    finally:
        for source in sources.values():
            source.close()


def key_lines(source: TensorSource, front: str) -> list[str]:
    """One line per tensor with its dtype and shape."""
    lines = []
    for key in source.keys():
        dtype, shape = source.info(key)
        lines.append(f"  {front}{key}  {dtype.name} {tuple(map(int, shape))}")
    return lines


def group_lines(source: TensorSource, front: str) -> list[str]:
    """The tensors by the first word of their keys; by the first two if all share the first."""
    keys = source.keys()
    if not keys:
        return []
    separator = "/" if "/" in keys[0] else "."
    words = 1 if len({key.split(separator)[0] for key in keys}) > 1 else 2
    groups = {}
    for key in keys:
        groups.setdefault(separator.join(key.split(separator)[:words]), []).append(key)
    return [f"  {front}{name}{separator}…: {len(own)} tensors" for name, own in groups.items()]


def readable(size: int) -> str:
    """Bytes as 12.3 MB, with 1 MB = 10**6 bytes."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"


def shorten(text: str) -> str:
    # Metadata may contain anything; escape codes would affect the terminal.
    text = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return text if len(text) <= SHOWN_NOTES else text[: SHOWN_NOTES - 3] + "..."


# ---- import and export -------------------------------------------------------------------------


def import_(args: argparse.Namespace) -> str:
    from persongen_jax.convert.importing import import_file

    if args.out.resolve() == args.path.resolve():
        raise WeightsError(f"{args.out}: is the input file; give another name")
    with destination(args) as out:
        return import_file(args.path, out, args.base)


def export(args: argparse.Namespace) -> str:
    from persongen_jax.convert.exporting import export_run
    from persongen_jax.systems.open import open_run

    if args.sgm_names and args.format != "kohya-lora":
        raise WeightsError(f"--sgm_names: has no effect with --format {args.format}")

    with destination(args) as out:
        run = open_run(args.run, args.step, _moved(args))
        return export_run(run, out, args.format, sgm_names=args.sgm_names)


def _moved(args: argparse.Namespace) -> Callable:
    """Changes a run's config to where its files are now."""

    def change(config):
        for key, value in (("base", args.base), ("id_encoder", args.id_encoder)):
            if value is not None:
                config[key] = value

    return change


def publish_(args: argparse.Namespace) -> str:
    from persongen_jax.convert import publishing
    from persongen_jax.systems.open import open_run

    publishing.check_repo(args.repo)
    token = "" if args.dry_run else publishing.read_token(args.token_file)
    return publishing.publish(
        open_run(args.run, args.step, _moved(args)),
        args.repo,
        token=token,
        public=args.public,
        dry_run=args.dry_run,
        file_format=args.format,
        licence_id=args.license,
        base_model=args.base_model,
        prompt=args.prompt,
        images=args.images,
    )


@contextlib.contextmanager
def destination(args: argparse.Namespace) -> Iterator[Path]:
    """The path to write: ``args.out``; in a dry run a temporary one that is removed at the end."""
    # A directory may hold more than an earlier import wrote, so --force does not replace it.
    if args.out.is_dir():
        raise WeightsError(f"{args.out}: is an existing directory; give another path or remove it")
    if args.out.exists() and not args.force:
        raise WeightsError(f"{args.out}: exists already; give --force to replace it")
    if args.dry_run:
        with tempfile.TemporaryDirectory(prefix="persongen-jax-") as folder:
            yield Path(folder) / args.out.name
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield args.out
    except OSError as error:
        if not is_full(error):
            raise
        raise OSError(f"{args.out}: no space left on the device; write it elsewhere") from error


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.command == "inspect":
        print(inspect(args.path, args.keys))
        return
    if args.command == "upgrade":
        for run in args.runs:
            print("\n".join(upgrade_run(run) or [f"{run}: has today's names already"]))
        return
    if args.command == "publish":
        print(publish_(args))
        return
    said = import_(args) if args.command == "import" else export(args)
    print(f"{'would be written' if args.dry_run else 'written'}: {args.out}: {said}")


if __name__ == "__main__":
    main()
