"""Does the miniature's base need names (persongen_jax/miniature/systems/names.py)?

    python -m benchmarks.training.names --work runs/names --out benchmarks/results/names.md

trains the base from nothing with and without them, the same seed, on the shipped VAE and text
towers, and then the main job on each of the two. What is complete is not repeated, and what was
stopped goes on: the command can be stopped. Options that it does not know go to the main job.
"""

import argparse
import datetime
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.machine import processor
from benchmarks.training.seeds import face_sims, mean_of, run_training
from data_pipeline.cli import command
from data_pipeline.files import write_text
from persongen_jax.miniature import sizes
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.miniature.pool import open_pool, open_tokenizers
from persongen_jax.miniature.systems.unet import NAMED
from persongen_jax.systems.open import open_run
from persongen_jax.tables import markdown
from persongen_jax.weights.formats.sdxl.loading import FILE_NAMES
from persongen_jax.weights.loader import cast_module
from persongen_jax.weights.saver import save_module

SHARES = {"with names": NAMED, "without": 0.0}  # of the captions that have a class word
BASE = "persongen_jax/miniature/configs.py:unet"


def train_base(name: str, work: Path, steps: int) -> Path:
    """The folder of an SDXL base, everything but the UNet as shipped."""
    run = work / "bases" / name.replace(" ", "_")
    out = work / "written" / run.name
    options = [f"--config.work={work}", f"--config.assets={ASSETS}", "--config.cpu_devices=1"]
    options += [f"--config.named={SHARES[name]}", f"--config.steps={steps}"]
    run_training(BASE, run, run.with_suffix(".log"), options)
    shutil.copytree(ASSETS / "sdxl", out, dirs_exist_ok=True)
    unet = open_run(run).system.model.unet  # with the pool of ``work``
    cast_module(unet, jnp.float16)
    save_module(unet, out / "unet", sizes.unet_config(), file_name=FILE_NAMES["unet"])
    return out


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.names", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--work", type=Path, default=Path("runs/names"), help="folder of the runs")
    parser.add_argument("--steps", type=int, default=2000, help="of a base (default: 2000)")
    parser.add_argument("--seeds", type=int, default=2, help="main jobs on each (default: 2)")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    args, options = parser.parse_known_args(argv)
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    open_pool(work)  # once, before two processes want it
    open_tokenizers(work)
    with ThreadPoolExecutor(2) as pool:
        bases = list(pool.map(lambda name: train_base(name, work, args.steps), SHARES))
        jobs = [(base, seed) for seed in range(args.seeds) for base in bases]
        own = ["--config.cpu_devices=1", *options]

        def run(job):
            base, seed = job
            return face_sims(seed, work / "jobs" / base.name, [f"--config.base={base}", *own])

        found = list(pool.map(run, jobs))
    measured = sorted(found[0])
    rows = [
        [name, seed, *(f"{mean_of(own[step]):.2f}" for step in measured)]
        for (name, seed), own in zip(
            ((name, seed) for seed in range(args.seeds) for name in SHARES), found, strict=True
        )
    ]
    text = (
        "# The main job on a base with and without names\n\n"
        f"`python -m benchmarks.training.names --steps {args.steps}`, {datetime.date.today()}, "
        f"{processor()}, jax {jax.__version__}. Both bases "
        f"had {args.steps} steps from nothing. Face-Sim on strangers after so many steps of the "
        f"main job.\n\n{markdown(['base', 'seed', *map(str, measured)], rows)}\n"
    )
    print(text)
    if args.out:
        write_text(args.out, text)


if __name__ == "__main__":
    main()
