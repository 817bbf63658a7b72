"""Measuring images with CLIP-T, CLIP-I, DINO-I, Face-Sim and LPIPS: ours, in turns with torch.

    python -m benchmarks.evaluation.speed --images 400 --out benchmarks/results/evaluation_speed.md

Both read the same files of random weights of the published sizes (CLIP ViT-B/32, DINO ViT-S/16,
ArcFace's IResNet50, AlexNet), and begin with decoded images in memory; each prepares them as its
tools do. Either side is a process of its own with all cores, and only one of them works at a time.
Torch's runs in inference mode, with the best of the tried batch sizes and memory layouts. Where
features differ by more than TOLERANCE, the benchmark fails.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.evaluation.speed_material import (
    METRICS,
    PERSON,
    SHARE,
    SIDE,
    SIZES,
    Material,
    draw,
    likeness,
    per_person,
    to_others,
    write_weights,
)
from benchmarks.machine import processor
from data_pipeline.cli import command
from data_pipeline.files import write_text
from persongen_jax.tables import markdown

SIDES = ("ours", "torch")
TOLERANCE = 1e-3  # of features of length 1, and of distances
CHECKED = 2 * PERSON  # images at most whose features are compared; they also warm up
CROPS = "face crops"  # the name of features of faces that both sides have aligned alike
HERE = Path(__file__).parents[2]
PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "insightface", "pillow", "numpy")


# ---- Our side ------------------------------------------------------------------------------------


class OurMetrics:
    """All metrics by the classes that ``evaluate`` uses; ``measure`` as TorchMetrics'."""

    def __init__(self, folder: Path):
        from persongen_jax.metrics.clip_score import ClipScore
        from persongen_jax.metrics.dino_embedder import DinoEmbedder
        from persongen_jax.metrics.embedders.lpips import PerceptualDistance
        from persongen_jax.metrics.face_embedder import open_face_embedder

        self.clip, self.dino = ClipScore(folder / "clip"), DinoEmbedder(folder / "dino")
        self.face = open_face_embedder(folder / "face.safetensors", "yunet")
        self.distance = PerceptualDistance(folder / "lpips.safetensors")
        self.checked: dict[str, np.ndarray] = {}

    def measure(self, metric: str, material: Material) -> np.ndarray:
        self.checked[metric], values = getattr(self, metric)(material)
        return values

    def clip_t(self, material):
        features = self.clip.image_features(material.images)
        return features, self.clip.score_features(features, material.prompts)

    def clip_i(self, material):
        features = self.clip.image_features(material.images)
        return features, likeness(features)

    def dino_i(self, material):
        features = self.dino.image_features(material.images)
        return features, likeness(features)

    def face_sim(self, material):
        from data_pipeline.faces.detectors import Detection

        boxes = ((*points.min(0), *points.max(0)) for points in material.landmarks)
        faces = [Detection(*face, 1.0) for face in zip(boxes, material.landmarks, strict=True)]
        features, _ = self.face.embed(material.images, faces)
        return features, likeness(features)

    def lpips(self, material):
        from persongen_jax.metrics.images.image_diversity import fitted

        tables = []
        for part in per_person(len(material.images)):
            tables.append(self.distance.pairs([fitted(image) for image in material.images[part]]))
        return np.concatenate([table.ravel() for table in tables]), to_others(tables)


# ---- One side, in a process of its own -----------------------------------------------------------


def work(side: str, folder: Path, count: int, size: str) -> None:
    """Write the first images' features and figures to ``{side}.npz``, say what is known, and then
    answer each metric's name on standard input with the seconds that it took."""
    material = draw(count)
    few, known = material.first(CHECKED), {}
    if side == "ours":
        import jax

        from persongen_jax.training.flop_count import measured_flops

        ours = OurMetrics(folder)
        measure, checked = ours.measure, ours.checked
        known["rate"] = measured_flops(jax.devices()[0], 2048)
    else:
        from benchmarks.evaluation.speed_torch import TorchMetrics, matmul_rate

        theirs = TorchMetrics(folder, size, len(os.sched_getaffinity(0)))
        known |= {"rate": matmul_rate(), "flops": theirs.flops(material)}
        theirs.choose(material)
        measure, checked = theirs.measure, theirs.checked
        known["settings"] = theirs.settings
    figures = {f"{metric} figures": measure(metric, few) for metric in METRICS}
    if side == "torch":
        checked[CROPS] = theirs.of_our_crops(few)
    np.savez(folder / f"{side}.npz", **checked, **figures)
    print(json.dumps(known), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        measure(line.strip(), material)
        print(json.dumps(time.perf_counter() - start), flush=True)


class Contender:
    """The process of one side. ``known``: what it says about itself."""

    def __init__(self, side: str, folder: Path, count: int, size: str):
        words = ["--worker", side, "--folder", str(folder)]
        words += ["--images", str(count), "--size", size]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.evaluation.speed", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE,
            env={**os.environ, "PYTHONPATH": str(HERE), "JAX_PLATFORMS": "cpu"},
        )
        self.side, self.known = side, self._answer()

    def seconds(self, metric: str) -> float:
        self.process.stdin.write(f"{metric}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(f"the process of {self.side} ended with {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


# ---- Both in turns -------------------------------------------------------------------------------


def compare(count: int, size: str, rounds: int) -> dict:
    """``seconds`` by metric and side, one per round; ``known`` by side; ``apart``, see below."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = ["--worker", "weights", "--folder", name, "--size", size]
        subprocess.run(
            [sys.executable, "-m", "benchmarks.evaluation.speed", *words],
            cwd=HERE,
            env={**os.environ, "PYTHONPATH": str(HERE)},
            check=True,
        )
        contenders = {side: Contender(side, folder, count, size) for side in SIDES}
        apart = differences(*(np.load(folder / f"{side}.npz") for side in SIDES))
        seconds = {metric: {side: [] for side in SIDES} for metric in METRICS}
        for turn in range(rounds):
            for metric in METRICS:
                for side, contender in contenders.items():
                    seconds[metric][side].append(contender.seconds(metric))
            print(f"round {turn + 1} of {rounds} done", file=sys.stderr, flush=True)
        for contender in contenders.values():
            contender.close()
    known = {side: contender.known for side, contender in contenders.items()}
    return {"seconds": seconds, "known": known, "apart": apart}


def differences(ours, theirs) -> dict[str, tuple[float, float]]:
    """By metric: the largest difference of a feature, and of a figure.

    Raises:
        ValueError: features of images that are prepared alike differ by more than TOLERANCE.
    """

    def largest(a, b):
        return float(np.abs(np.asarray(a, np.float64) - b).max())

    found = {m: (m, f"{m} figures") for m in METRICS}
    apart = {m: tuple(largest(ours[key], theirs[key]) for key in found[m]) for m in METRICS}
    # norm_crop rounds positions to parts of a pixel, so that some pixels of crops differ by one.
    apart[CROPS] = largest(ours["face_sim"], theirs[CROPS]), 0.0
    for metric, (feature, _) in apart.items():
        if metric != "face_sim" and not feature <= TOLERANCE:
            raise ValueError(f"{metric}: features differ by {feature:.1e}, over {TOLERANCE}")
    return apart


# ---- The report ----------------------------------------------------------------------------------


def table(result: dict) -> str:
    known, rows = result["known"], []
    rate = max(side["rate"] for side in known.values())
    for metric, title in METRICS.items():
        seconds = result["seconds"][metric]
        middle = {side: statistics.median(values) for side, values in seconds.items()}
        batch, last = known["torch"]["settings"][metric]
        flops = known["torch"]["flops"][metric]
        rows.append(
            [
                title,
                f"{flops / rate:.1f}",
                *(f"{middle[s]:.1f} ({min(v):.1f} to {max(v):.1f})" for s, v in seconds.items()),
                f"**{middle['torch'] / middle['ours']:.2f}**",
                f"{middle['ours'] * rate / flops:.2f}",
                f"{batch} at once, channels {'last' if last else 'first'}",
                *(f"{value:.0e}" for value in result["apart"][metric]),
            ]
        )
    head = ["metric", "floor, s", "ours, s", "torch, s", "torch / ours", "ours / floor"]
    head += ["torch's best setting", "features apart", "figures apart"]
    return markdown(head, rows)


def report(result: dict, count: int, size: str, rounds: int) -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    rate = max(side["rate"] for side in result["known"].values())
    crops = result["apart"][CROPS][0]
    if size != "published":
        versions += f"; **networks of the size {size!r}: the figures say nothing about speed**"
    return f"""# Measuring {count} images

`python -m benchmarks.evaluation.speed --images {count}`, {datetime.date.today()}, {processor()}, \
float32. {versions}.

{count} images of {SIDE} × {SIDE}, {PERSON} of each person, half of which count as the person's \
pictures, {SHARE} of each prompt. Medians (and ranges) of {rounds} rounds in turns; the last \
columns are the largest differences. The floor is counted before: FLOPs of the published networks \
over {rate / 1e9:.0f} GFLOP/s, the faster of jax's and torch's product of two matrices of side \
2048. Preparing images is not in it.

{table(result)}

- CLIP: transformers' CLIPModel; its image processor resizes with Pillow, as ours does, since \
torchvision does not load beside torch 2.13.0.
- DINO-I: transformers' ViTModel after the steps of facebookresearch's transforms, on Pillow.
- Face-Sim begins with known landmarks, as no detector runs on torch here (of detectors: \
faces.md). Torch's side aligns by InsightFace's norm_crop, which rounds positions, hence the \
larger difference; on the same crops features are {crops:.0e} apart.
- LPIPS: all pairs of a person's images at 256 × 256, as image diversity has it. The lpips \
package imports torchvision, so AlexNet is torch.nn layers in its layout. Here torch, too, reads \
every image once and takes the distances from products; the package sends both images of every \
pair through the network.
- CLIP-T and CLIP-I are measured apart here; `evaluate` computes their features of an image once.
"""


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation.speed", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", choices=SIZES, default="published", help="of the networks")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    parser.add_argument("--worker", choices=(*SIDES, "weights"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.images < 2 or args.rounds < 1:
        parser.error("give at least 2 images and 1 round")
    if args.worker == "weights":
        write_weights(args.folder, args.size)
    elif args.worker:
        work(args.worker, args.folder, args.images, args.size)
    else:
        result = compare(args.images, args.size, args.rounds)
        text = report(result, args.images, args.size, args.rounds)
        print(text, end="")
        if args.out:
            write_text(args.out, text)


if __name__ == "__main__":
    main()
