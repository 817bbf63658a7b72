"""evaluate --images on thousands of images: memory, and what a restart has to do again.

    python -m benchmarks.evaluation.many_images --out benchmarks/results/many_images.md

Drawn people, the miniature's judges. Each measurement is the command in a process of its own. One
of them is killed in the middle, and the same command is started again.
"""

import argparse
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from benchmarks.machine import processor
from data_pipeline.cli import command
from data_pipeline.drawing.people import example
from data_pipeline.files import write_text
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.tables import markdown

PICTURES = 20  # of each person
HERE = Path(__file__).parents[2]


def draw(folder: Path, people: int) -> None:
    """``people`` strangers: generated/ has PICTURES of each with captions, references/ one more."""
    lines = []
    for person in range(people):
        name = f"p{person:04d}"
        for kind in ("generated", "references"):
            (folder / kind / name).mkdir(parents=True)
        for number in range(PICTURES + 1):
            drawn = example("out_of_train", identity_index=person, picture_seed=number)
            kind = "generated" if number else "references"
            path = folder / kind / name / f"{number}.png"
            Image.fromarray(np.asarray(drawn.images[0])).save(path)
            if number:
                line = {"file_name": f"{name}/{path.name}", "person": name, "seed": number}
                lines.append(json.dumps({**line, "prompt": drawn.captions[0]}))
    (folder / "generated" / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def run(images: Path, cache: Path, out: Path, kill_after: float = 0.0) -> tuple[float, float]:
    """(seconds, peak of the resident memory in MB) of the command; or it is killed."""
    judges = ASSETS / "judges"
    words = ["--images", str(images / "generated"), "--references", str(images / "references")]
    words += ["--real", str(images / "references"), "--metrics", "clip_t", "clip_i", "face_sim"]
    words += ["--encoder", f"clip={judges / 'clip'}", "--recogniser", str(judges / "face_net")]
    start = time.perf_counter()
    with open(out.with_suffix(".log"), "a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "persongen_jax.evaluate", *words]
            + ["--cache", str(cache), "--out", str(out)],
            cwd=HERE,
            env={**os.environ, "PYTHONPATH": str(HERE)},
            stdout=log,
            stderr=log,
        )
        if kill_after:
            threading.Timer(kill_after, process.send_signal, [signal.SIGKILL]).start()
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and not kill_after:
        raise ValueError(f"the evaluation failed; its output is in {out.with_suffix('.log')}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def figures(out: Path) -> dict[str, float]:
    found = json.loads((out / "scores.json").read_text())["metrics"]
    return {name: metric["value"] for name, metric in found.items()}


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation.many_images", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--people", type=int, default=200, help=f"{PICTURES} images each")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    args = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for people in (args.people // 4, args.people):
            images = folder / str(people)
            draw(images, people)
            whole = run(images, folder / f"cache{people}", folder / f"out{people}")
            rows.append([f"{people * PICTURES} images", *whole])
        wanted = figures(folder / f"out{people}")
        rows.append(
            [
                "the same, all features there",
                *run(images, folder / f"cache{people}", folder / "out"),
            ]
        )
        shutil.rmtree(folder / f"cache{people}")
        run(images, folder / "cache", folder / "out", kill_after=whole[0] / 2)
        rows.append(
            [f"killed after {whole[0] / 2:.0f} s, started again"]
            + [*run(images, folder / "cache", folder / "out")]
        )
        same = wanted == figures(folder / "out")
    rows = [[name, f"{seconds:.0f}", f"{memory:.0f}"] for name, seconds, memory in rows]
    text = (
        "# Evaluating thousands of images\n\n`python -m benchmarks.evaluation.many_images`, "
        f"{datetime.date.today()}, {processor()}, jax {jax.__version__}. 64 pixels, CLIP-T, CLIP-I "
        "and Face-Sim by the miniature's judges; memory is the peak of the resident set.\n\n"
        + markdown(["", "seconds", "MB"], rows)
        + f"\n\nFigures after the restart: {'equal' if same else '**different**'}.\n"
    )
    print(text)
    if args.out:
        write_text(args.out, text)


if __name__ == "__main__":
    main()
