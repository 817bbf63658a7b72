"""The loader alone: examples per second, compared with the needs of a training chip at full size.

    python -m benchmarks.loader --json benchmarks/results/loader.json
    python -m benchmarks.loader --quick        # a one-minute smoke test, figures are meaningless

Full size: shards of JPEG images of 768 px (drawn people, enlarged, with grain, so that a file is as
large as a photograph's), targets of 512 px, up to four references of 224 px. Nothing is cached in
memory there: a real set is read about once per epoch. Miniature: drawn people in memory, 64 px.
Every contender is a separate process, tied to as many cores as it has workers; they take turns, so
that drift of the machine's speed affects all.
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
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from data_pipeline.examples.batches import batches, tf_batches
from data_pipeline.examples.conditions import References, Text
from data_pipeline.examples.fields import FaceBox, Image, TimeIds
from data_pipeline.examples.source import ExampleSource
from data_pipeline.prompts import Tokenizers
from data_pipeline.records.manifest import write_manifest
from data_pipeline.records.sources import open_records
from data_pipeline.shards import write_shards
from persongen_jax.tables import markdown
from persongen_jax.weights.tiny_tokenizer import SDXL_PAD_TOKENS, write_tiny_tokenizer

LOADERS = {"memory": batches, "tf.data": tf_batches}
STREAMS = ("text", "background", "body")
BATCH = 24

# Training at 512 px, base frozen, adapters trained: TFLOP per image; chips' bf16 peaks, TFLOP/s.
TFLOP_PER_IMAGE = 3.18
PEAKS = {"v5e": 197, "v5p": 459, "v6e": 918, "H200": 989}
ASSUMED_UTILISATION = 0.45

# pixels: the images' side; drawn: the side at which they are drawn, before they are enlarged.
FULL = {"pixels": 768, "drawn": 192, "identities": 16, "pictures": 12, "size": 512, "id_size": 224}
MINI = {"identities": 200, "pictures": 16, "size": 64, "id_size": 64}
QUICK_FULL = {**FULL, "pixels": 96, "drawn": 48, "identities": 2, "size": 64, "id_size": 32}
QUICK_MINI = {**MINI, "identities": 2}


# ---- The data ----------------------------------------------------------------------------------


def write_photographs(folder: Path, setting: dict) -> str:
    """Shards of JPEG files; returns their folder."""
    drawn, pixels = setting["drawn"], setting["pixels"]
    count = f"identities={setting['identities']}&pictures={setting['pictures']}"
    records, read_image = open_records(f"people:in_train?{count}&size={drawn}&framing=portrait")
    rng = np.random.default_rng(0)
    photographs = folder / "photographs"
    photographs.mkdir()
    written = []
    for i, record in enumerate(records):
        large = PillowImage.fromarray(read_image(record.image)).resize((pixels, pixels))
        grain = rng.normal(0, 5, (pixels, pixels, 1))
        noisy = np.clip(np.asarray(large) + grain, 0, 255).astype(np.uint8)
        path = photographs / f"{i:05d}.jpg"
        PillowImage.fromarray(noisy).save(path, quality=90)
        box = tuple(v * pixels / drawn for v in record.face_box)
        points = {"landmarks": None, "keypoints": None, "visibility": None}
        written.append(replace(record, image=str(path), face_box=box, **points))
    write_manifest(photographs, written)
    write_shards(photographs, folder / "shards")
    return str(folder / "shards")


def write_tokenizers(folder: Path) -> str:
    for name, pad_token in zip(("tokenizer", "tokenizer_2"), SDXL_PAD_TOKENS, strict=True):
        write_tiny_tokenizer(folder / name, pad_token)
    return str(folder)


# ---- One contender, in its own process ---------------------------------------------------------


def measure(job: dict) -> dict:
    """Examples per second of wall time and of processor time, after warm-up."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-job["workers"] :])
    records, read_image = open_records(job["data"])
    prompts = Text(Tokenizers.from_pretrained(job["tokenizers"]), STREAMS)
    fields = (Image(), prompts, References(job["id_size"]), TimeIds(), FaceBox())
    options = {"seed": 0, "size": job["size"], "cache_bytes": job["cache_bytes"]}
    source = ExampleSource(records, fields, read_image=read_image, **options)
    stream = LOADERS[job["loader"]](source, batch_size=BATCH, workers=job["workers"])
    # With a memory cache: until nearly full. Without: two batches, with tf.data's threads busy.
    for _ in range(2 * len(records) // BATCH if job["cache_bytes"] else 2):
        next(stream)
    made, start, busy = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < job["seconds"]:
        made += len(next(stream)["id_mask"])
    wall, busy = time.perf_counter() - start, time.process_time() - busy
    return {"examples_per_second": made / wall, "examples_per_core_second": made / busy}


def run(job: dict) -> dict:
    command = [sys.executable, "-m", "benchmarks.loader", "--job", json.dumps(job)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# ---- All of them -------------------------------------------------------------------------------


def compare(args) -> dict:
    full, mini = (QUICK_FULL, QUICK_MINI) if args.quick else (FULL, MINI)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        tokenizers = write_tokenizers(folder / "base")
        shards = write_photographs(folder, full)
        files = [path.stat().st_size for path in (folder / "photographs").glob("*.jpg")]
        people = f"people:in_train?identities={mini['identities']}&pictures={mini['pictures']}"
        worlds = {
            "full size": {"data": shards, "cache_bytes": 0, **full},
            "miniature": {"data": people, "cache_bytes": 1 << 30, **mini},
        }
        jobs = [
            {"world": name, "loader": loader, "workers": workers, "seconds": args.seconds}
            | {"tokenizers": tokenizers, **world}
            for name, world in worlds.items()
            for loader in LOADERS
            for workers in args.workers
        ]
        runs = [[run(job) for job in jobs] for _ in range(args.rounds)]
    rows = []
    for job, results in zip(jobs, zip(*runs, strict=True), strict=True):
        row = {name: job[name] for name in ("world", "loader", "workers", "size", "id_size")}
        for name in results[0]:
            values = [result[name] for result in results]
            row[name] = statistics.median(values)
            row[name + "_range"] = [min(values), max(values)]
        rows.append(row)
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "versions": {name: version(name) for name in ("numpy", "pillow", "tensorflow-cpu")},
        "quick": args.quick,
        "rounds": args.rounds,
        "jpeg_kbytes": statistics.mean(files) / 1e3,
        "rows": rows,
        "need": need(rows),
    }


def need(rows: list[dict]) -> list[dict]:
    """Per chip: images per second at the assumed utilisation, and the cores that load as many."""
    alone = [row for row in rows if row["world"] == "full size"]
    fewest = min(row["workers"] for row in alone)
    per_core = max(row["examples_per_second"] / fewest for row in alone if row["workers"] == fewest)
    images = {chip: ASSUMED_UTILISATION * peak / TFLOP_PER_IMAGE for chip, peak in PEAKS.items()}
    return [
        {"chip": chip, "images_per_second": rate, "cores": rate / per_core}
        for chip, rate in images.items()
    ]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def report(result: dict) -> str:
    lines = ["--quick: these figures say nothing", ""] if result["quick"] else []
    lines += [
        f"{result['cpu']}, {result['cores']} cores, {result['date']}; JPEG files of "
        f"{result['jpeg_kbytes']:.0f} kB; median of {result['rounds']} runs (lowest to highest)",
        "",
    ]
    rows = []
    for row in result["rows"]:
        low, high = row["examples_per_second_range"]
        what = f"{row['world']}, {row['size']} px, references {row['id_size']} px"
        rate = f"{row['examples_per_second']:.1f} ({low:.1f} to {high:.1f})"
        per_core = f"{row['examples_per_core_second']:.1f}"
        rows.append([what, row["loader"], row["workers"], rate, per_core])
    head = ("", "loader", "workers = cores", "examples/s", "examples per core second")
    lines += [markdown(head, rows), ""]
    chip = (
        f"chip, {ASSUMED_UTILISATION:.0%} of its bf16 peak assumed, {TFLOP_PER_IMAGE} TFLOP per "
        "image of 512 px"
    )
    need = [
        (row["chip"], f"{row['images_per_second']:.0f}", f"{row['cores']:.1f}")
        for row in result["need"]
    ]
    lines.append(markdown((chip, "images/s", "cores that load as many"), need))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny images, one short round")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--rounds", type=int, help="default: 3")
    parser.add_argument("--seconds", type=float, help="of measuring per contender; default: 10")
    parser.add_argument("--json", type=Path, help="write the result here as well")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(measure(args.job)))
        return
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.seconds = args.seconds or (0.3 if args.quick else 10)
    result = compare(args)
    print(report(result))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
