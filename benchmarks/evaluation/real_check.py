"""First contact with real weights: a report to paste into an issue.

    launch/real_check.sh SDXL_DIR [PHOTOMAKER_FILE ...] --people FOLDER --clip DIR --out report.md

Files and hashes; one image from fixed latents, ours and diffusers' where torch and diffusers are
installed; the thesis' table 5.1 for the adapters, if there are people; memory and time. Each image
is made by a process of its own, so that its memory is its own. A part that fails is in the report
with its message, the others are made all the same, and the exit status is 1. Options after "--" go
to persongen_jax.evaluate.
"""

import argparse
import datetime
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.machine import processor
from data_pipeline.cli import command
from data_pipeline.files import write_text

PROMPT = "a photo of a man in the desert"
GUIDANCE = 5.0
PACKAGES = ("jax", "flax", "numpy", "torch", "diffusers", "transformers")
WEIGHTS = ("*.safetensors", "*.bin", "*.ckpt")
THESIS = (
    "Table 5.1 of the thesis, PhotoMaker's weights on its people, CLIP-T and Face-Sim: in-train "
    "28.62 and 0.19, out-of-train 28.87 and 0.18, out-of-domain 29.35 and 0.28. Other judges give "
    "other figures."
)
GIB = 1 << 30


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """(options, words after "--")."""
    words = sys.argv[1:] if argv is None else argv
    place = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog="launch/real_check.sh", description=__doc__.split("\n")[0]
    )
    parser.add_argument("base", type=Path, metavar="SDXL_DIR")
    parser.add_argument("adapters", type=Path, nargs="*", metavar="FILE", help="PhotoMaker's, …")
    parser.add_argument("--people", help="for the table: photographs of people")
    parser.add_argument("--clip", help="for the table: a CLIP for CLIP-T")
    parser.add_argument("--size", type=int, help="of the image; default: the base's own")
    parser.add_argument("--steps", type=int, default=4, help="of the image (default: 4)")
    parser.add_argument("--out", type=Path, default=Path("real_check.md"))
    parser.add_argument("--image", choices=IMAGES, help=argparse.SUPPRESS)
    return parser.parse_args(words[:place]), words[place + 1 :]


# ---- one image, in a process of its own ----------------------------------------------------------


def our_image(args: argparse.Namespace) -> tuple[str, Callable[[], np.ndarray]]:
    """(the device, what makes the image [h, w, 3] in 0..1); float32. Writes the latents."""
    import jax

    from persongen_jax.pipeline import Pipeline
    from persongen_jax.pipeline.images import default_size

    pipe = Pipeline.from_pretrained(args.base)
    height, width = (args.size, args.size) if args.size else default_size(pipe.base)
    noise = pipe.draw_latents(0, 1, height, width)
    np.save(latents_file(args), np.asarray(noise))

    def run():
        size = {"height": height, "width": width, "output_type": "np"}
        return pipe(PROMPT, latents=noise, **size, **settings(args)).images[0]

    return f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}", run


def their_image(args: argparse.Namespace) -> tuple[str, Callable[[], np.ndarray]]:
    """The same with diffusers' pipeline, from the same latents."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = StableDiffusionXLPipeline.from_pretrained(args.base, torch_dtype=torch.float32)
    pipe.to(device).set_progress_bar_config(disable=True)
    pipe.watermark = None  # where its package is installed, it changes large images
    noise = torch.from_numpy(np.load(latents_file(args)).transpose(0, 3, 1, 2).copy()).to(device)
    height, width = (side * pipe.vae_scale_factor for side in noise.shape[2:])

    def run():
        size = {"height": height, "width": width, "output_type": "np"}
        return pipe(PROMPT, latents=noise, **size, **settings(args)).images[0]

    return device, run


IMAGES = {"ours": our_image, "theirs": their_image}


def settings(args: argparse.Namespace) -> dict:
    return {"num_inference_steps": args.steps, "guidance_scale": GUIDANCE}


def latents_file(args: argparse.Namespace) -> Path:
    return args.out.with_name("latents.npy")


def make_image(args: argparse.Namespace) -> None:
    """Write the image to ``args.out``, and print what it took as JSON."""
    start = time.perf_counter()
    device, run = IMAGES[args.image](args)
    loaded = time.perf_counter() - start
    image = run()
    first = time.perf_counter() - start
    again = time.perf_counter()
    run()
    told = {"device": device, "load": loaded, "first": first, "again": time.perf_counter() - again}
    told["on_device"] = device_memory(args.image)
    np.save(args.out, image)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**told, "height": image.shape[0], "width": image.shape[1], "memory": memory}))


def device_memory(name: str) -> int:
    """Most bytes used of the accelerator; 0 if unknown, as on a CPU."""
    if name == "ours":
        import jax

        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


# ---- parts of the report -------------------------------------------------------------------------


def machine(args: argparse.Namespace) -> Iterator[str]:
    found = [f"{name} {version}" for name in PACKAGES if (version := version_of(name))]
    yield f"{datetime.date.today()}, {processor()}, Python {platform.python_version()}"
    yield ", ".join(found)


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def files(args: argparse.Namespace) -> Iterator[str]:
    """What each is, and its SHA-256."""
    from persongen_jax.convert.__main__ import inspect

    for path in (args.base, *args.adapters):
        yield f"```\n{inspect(path)}\n```"
        weights = [path]
        if path.is_dir():
            weights = sorted(each for pattern in WEIGHTS for each in path.rglob(pattern))
        for each in weights:
            with each.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            yield f"`{digest}` {each}"


def image(args: argparse.Namespace) -> Iterator[str]:
    """Ours, and how far diffusers' is from it."""
    lacking = [name for name in ("torch", "diffusers") if not importlib.util.find_spec(name)]
    with tempfile.TemporaryDirectory() as folder:
        first = in_process(args, "ours", Path(folder))
        yield cost_line("ours", first, args)
        if lacking:
            yield f"Not compared: {' and '.join(lacking)} not installed (extra `test`)."
            return
        yield cost_line("diffusers", in_process(args, "theirs", Path(folder)), args)
        ours, theirs = (np.load(Path(folder) / f"{name}.npy") for name in IMAGES)
    apart = np.abs(ours.astype(np.float64) - theirs) * 255
    yield (
        f"Between the two, of 255: largest difference {apart.max():.3f}, mean {apart.mean():.4f}; "
        f"the image's own deviation {ours.std() * 255:.1f}."
    )


def in_process(args: argparse.Namespace, name: str, folder: Path) -> dict:
    words = [str(args.base), "--steps", str(args.steps), "--image", name]
    words += ["--out", str(folder / f"{name}.npy")]
    words += ["--size", str(args.size)] if args.size else []
    return json.loads(run_module("benchmarks.evaluation.real_check", *words).splitlines()[-1])


def cost_line(name: str, cost: dict, args: argparse.Namespace) -> str:
    device = f", {cost['on_device'] / GIB:.1f} GiB of the device's" if cost["on_device"] else ""
    return (
        f"{name}, {cost['device']}, float32, {cost['width']}x{cost['height']}, {args.steps} steps: "
        f"{cost['load']:.0f} s to load, {cost['first']:.0f} s to the first image, "
        f"{cost['again']:.1f} s for the second; {cost['memory'] / GIB:.1f} GiB of main memory"
        f"{device} at most."
    )


def table(args: argparse.Namespace, more: list[str]) -> Iterator[str]:
    """The adapters on the thesis' benchmark."""
    if not args.adapters or not args.people:
        lacking = "an adapter's file" if not args.adapters else "--people FOLDER"
        yield f"Not measured: give {lacking}."
        return
    start = time.perf_counter()
    words = ["--base", str(args.base), "--benchmark", "thesis", "--people", args.people]
    for number, path in enumerate(args.adapters):
        words += ["--weights", f"{number}-{path.stem}={path}"]
    words += ["--clip", args.clip] if args.clip else []
    words += ["--out", str(args.out.with_name(f"{args.out.stem}_table")), *more]
    yield run_module("persongen_jax.evaluate", *words).strip()
    yield f"{(time.perf_counter() - start) / 60:.1f} minutes."
    yield THESIS


def run_module(module: str, *words: str) -> str:
    """Its output; ValueError with its last line of errors."""
    ended = subprocess.run(
        [sys.executable, "-m", module, *words], capture_output=True, text=True, check=False
    )
    if ended.returncode < 0:
        raise ValueError(f"{module} was ended by signal {-ended.returncode}; 9: out of memory?")
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        raise ValueError(re.sub(r"^error: ", "", lines[-1]) if lines else f"{module} failed")
    return ended.stdout


@command
def main(argv: list[str] | None = None) -> int:
    args, more = parse_arguments(argv)
    if args.image:
        make_image(args)
        return 0
    for path in (args.base, *args.adapters):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[], Iterator[str]]] = {
        "Machine": lambda: machine(args),
        "Files": lambda: files(args),
        "One image": lambda: image(args),
        "The thesis' table": lambda: table(args, more),
    }
    text, failed = ["# First contact with real weights"], []
    for title, part in parts.items():
        print(f"{title} …", flush=True)
        text.append(f"## {title}")
        try:
            text.extend(part())
        except (ValueError, OSError, MemoryError) as error:
            failed.append(title)
            text.append(f"**Failed**: {error or type(error).__name__}")
        write_text(args.out, "\n\n".join(text) + "\n")  # now: the next part may take hours
    print(f"written: {args.out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
