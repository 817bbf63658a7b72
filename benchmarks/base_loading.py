"""Opening SDXL at full size in fp16, and the start of generate: this checkout against another.

    git worktree add ../earlier COMMIT
    python -m benchmarks.base_loading --versus ../earlier --out benchmarks/results/base_loading.md

The files have SDXL's own shapes and random bits. Every figure is a process of its own; the two
checkouts take turns, so that a drift of the machine's speed hits both. The floor is reading the
same bytes and writing them to fresh memory.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from persongen_jax.models.sdxl.parts import COMPONENTS, build
from persongen_jax.models.sdxl.sizes import CONFIGS
from persongen_jax.tables import markdown
from persongen_jax.weights.files.safetensors_file import write_safetensors
from persongen_jax.weights.formats.sdxl.loading import FILE_NAMES
from persongen_jax.weights.loader import parameter_leaves, to_torch_shape, torch_key
from persongen_jax.weights.random_base import write_random_base
from persongen_jax.weights.saver import write_json

LOAD = """
import sys, time, jax.numpy as jnp, jax
jax.devices()
from persongen_jax.weights.formats.sdxl.loading import load_sdxl
start = time.perf_counter()
base = load_sdxl(sys.argv[1], dtype=jnp.float16, vae_dtype=jnp.float16)
jax.block_until_ready(base.model.unet.conv_in.kernel.get_value())
print(time.perf_counter() - start)
"""
GENERATE = "--prompt x --steps 1 --height 64 --width 64 --guidance-scale 1".split()


def write_full_size(folder: Path, small: Path):
    """A directory with SDXL's shapes in fp16; tokenizers and scheduler are the small one's."""
    rng = np.random.default_rng(0)
    bits = rng.standard_normal(1 << 22, np.float32).astype(np.float16) * np.float16(0.02)
    for name in ("tokenizer", "tokenizer_2", "scheduler"):
        (folder / name).mkdir(parents=True)
        for file in (small / name).iterdir():
            (folder / name / file.name).write_bytes(file.read_bytes())
    for name in COMPONENTS:
        dtypes = {"dtype": jnp.float16, "param_dtype": jnp.float16}
        leaves = parameter_leaves(nnx.eval_shape(build(CONFIGS, name, **dtypes)))
        shapes = {torch_key(path): to_torch_shape(path, x.shape) for path, x in leaves.items()}
        entries = [
            (key, shape, np.dtype(np.float16), lambda shape=shape: np.resize(bits, shape))
            for key, shape in sorted(shapes.items())
        ]
        (folder / name).mkdir()
        write_json(folder / name / "config.json", CONFIGS[name])
        write_safetensors(folder / name / FILE_NAMES[name], entries, {"format": "pt"})


def run(checkout: Path, *arguments) -> tuple[float, str]:
    """Seconds of a Python process that sees this checkout's packages, and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{checkout}: {done.stderr[-2000:]}")
    return time.perf_counter() - start, done.stdout


def floor(folder: Path) -> float:
    """Seconds to read all weights once into fresh memory."""
    start = time.perf_counter()
    for path in sorted(folder.glob("*/*.safetensors")):
        np.array(np.memmap(path, mode="r"))
    return time.perf_counter() - start


def measure(here: Path, other: Path, full: Path, small: Path, scratch: Path, rounds: int):
    """{what: {which: seconds of each round}}; the first round is to warm up and not kept."""
    found = {
        "open SDXL, fp16": {"before": [], "now": []},
        "generate, one step of the tiny base": {"before": [], "now": []},
        "floor": {"now": []},
    }
    for number in range(rounds + 1):
        order = [("before", other), ("now", here)]
        row = {"floor": {"now": floor(full)}, **{what: {} for what in list(found)[:2]}}
        for which, checkout in order if number % 2 else order[::-1]:
            floor(full)  # both find the files in the same state of the system's cache
            row["open SDXL, fp16"][which] = float(run(checkout, "-c", LOAD, full)[1].split()[-1])
            out = scratch / f"{which}{number}"
            options = ["--base", small, "--out", out, *GENERATE]
            seconds, _ = run(checkout, "-m", "persongen_jax.generate", *options)
            row["generate, one step of the tiny base"][which] = seconds
        for what, sides in row.items() if number else ():
            for which, seconds in sides.items():
                found[what][which].append(seconds)
        print(json.dumps(row), flush=True)
    return found


def table(found) -> str:
    rows = []
    for what, sides in found.items():
        seconds = {k: statistics.median(v) for k, v in sides.items()}
        before = f"{seconds['before']:.2f}" if "before" in seconds else ""
        ratio = f"{seconds['now'] / seconds['before']:.3f}" if before else ""
        rows.append([what, before, f"{seconds['now']:.2f}", ratio])
    return markdown(("what", "before, s", "now, s", "now / before"), rows)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--versus", type=Path, required=True, help="another checkout")
    parser.add_argument("--rounds", type=int, default=4, help="even: each is first as often")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    here = Path(__file__).resolve().parent.parent
    commits = [
        subprocess.run(
            ["git", "-C", folder, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
        for folder in (args.versus, here)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        small, full = scratch / "small", scratch / "full"
        write_random_base(small)
        write_full_size(full, small)
        found = measure(here, args.versus.resolve(), full, small, scratch, args.rounds)
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "numpy"))
    text = (
        "# Opening a base, against an earlier commit\n\n"
        f"`python -m benchmarks.base_loading`, {datetime.date.today()}, {processor()}, "
        f"{os.cpu_count()} cores, {versions}; commits {commits[0]} (before) and {commits[1]} "
        f"(now); medians of {args.rounds} rounds in turns. The floor reads the same files into "
        f"memory.\n\n{table(found)}\n"
    )
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
