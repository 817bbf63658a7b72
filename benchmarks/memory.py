"""What lies in a device's memory at full size, by recipe, from shapes: docs/memory.md.

    python -m benchmarks.memory --out benchmarks/results/memory.md

Weights, optimizer and batch of one device are counted to the byte; nothing is loaded or compiled.
What a program needs for itself while it runs is not in it: ``aot`` has that for TPUs.
"""

import argparse
import datetime
from pathlib import Path
from typing import NamedTuple

import jax

from data_pipeline.cli import command
from data_pipeline.files import write_text
from persongen_jax.aot.programs import sampler, training
from persongen_jax.config import load_config
from persongen_jax.parallel.sharding import make_mesh
from persongen_jax.tables import markdown

CARDS = (16, 24, 40, 80)  # GB


class Recipe(NamedTuple):
    """A program: what it does, the config's file, what is changed in it, how it runs.

    cached: a step on cached features. trains: a training step; False: the sampler's loop.
    """

    what: str
    config: str
    changes: dict
    cached: bool = True
    trains: bool = True


INT8 = {"quantize": "int8"}
HOST = {"offload_encoders": True}
LORA, WORD = {"token": "ohwx"}, {"token": "<me>"}
TOWERS = LORA | {"text_rank": 16}
EIGHT = {"batch_size": 8} | HOST
LARGE = {"size": 1024, "batch_size": 1}
LORA_FILE, WORD_FILE = "configs/lora.py", "configs/textual_inversion.py"
RECIPES = (
    Recipe("LoRA, 1024², 1 image", LORA_FILE, LORA | HOST),
    Recipe("the same, int8", LORA_FILE, LORA | HOST | INT8),
    Recipe("LoRA with both text towers, 1024²", LORA_FILE, TOWERS, cached=False),
    Recipe("the same, int8", LORA_FILE, TOWERS | INT8, cached=False),
    Recipe("Textual Inversion, 1024²", WORD_FILE, WORD, cached=False),
    Recipe("the same, int8", WORD_FILE, WORD | INT8, cached=False),
    Recipe("DreamBooth, the whole UNet, 1024²", "configs/dreambooth.py", LORA | HOST),
    Recipe("PhotoMaker, 512², 8 images", "configs/base.py", EIGHT),
    Recipe("the same, int8", "configs/base.py", EIGHT | INT8),
    Recipe("generating, 1024²", "configs/base.py", LARGE, trains=False),
    Recipe("the same, int8", "configs/base.py", LARGE | INT8, trains=False),
)


def parts_of(recipe: Recipe) -> dict[str, int]:
    """Bytes by part on one device."""
    config = load_config(recipe.config, recipe.changes)
    mesh = make_mesh(jax.devices()[:1])
    if recipe.trains:
        return training(config, mesh, cached=recipe.cached).bytes_per_chip()
    return sampler(config, mesh, steps=1).bytes_per_chip()


def row_of(recipe: Recipe) -> list[str]:
    parts = parts_of(recipe)
    weights = parts.get("frozen weights", 0) + parts.get("weights", 0)
    columns = [weights, parts.get("trained weights", 0), parts.get("optimizer", 0), parts["batch"]]
    total = sum(columns)
    room = [f"{card - total / 1e9:.1f}" if card * 1e9 > total else "no" for card in CARDS]
    changes = " ".join(f"--config.{key}={value}" for key, value in recipe.changes.items())
    how = f"`{recipe.config} {changes}`" + (", cached" if recipe.cached and recipe.trains else "")
    print(f"{recipe.what}: {total / 1e9:.2f} GB", flush=True)
    return [recipe.what, *(f"{n / 1e9:.2f}" for n in (*columns, total)), *room, how]


def report() -> str:
    head = ["", "frozen", "trained", "optimizer", "batch", "together"]
    head += [*(f"left of {card}" for card in CARDS), "config"]
    return (
        "# What lies in memory at full size\n\n"
        f"`python -m benchmarks.memory`, {datetime.date.today()}, jax {jax.__version__}; GB (10^9 "
        "bytes) on one device, from shapes. *Left*: of a card of that many GB, for what the "
        "program needs while it runs, which is not counted here.\n\n"
        + markdown(head, [row_of(recipe) for recipe in RECIPES])
        + "\n"
    )


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    args = parser.parse_args(argv)
    text = report()
    print(text)
    if args.out:
        write_text(args.out, text)


if __name__ == "__main__":
    main()
