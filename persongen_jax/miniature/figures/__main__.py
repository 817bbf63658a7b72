"""Measures everything, and writes figures.json and the table of the documentation."""

import argparse
import json
import time
from pathlib import Path

from persongen_jax.cli import command
from persongen_jax.metrics.clip_score import ClipScore
from persongen_jax.metrics.face_embedder import open_face_embedder
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.miniature.figures import generated, networks
from persongen_jax.miniature.figures.table import insert, sizes, table
from persongen_jax.miniature.sizes import FACE_SIDE, PARTS_SIDE
from persongen_jax.pipeline import Pipeline
from persongen_jax.weights.formats.arcface import load_arcface
from persongen_jax.weights.formats.clip import load_vision_tower
from persongen_jax.weights.formats.keypoint_net import load_keypoint_net
from persongen_jax.weights.saver import write_json


def measure(assets: Path, out: Path, samples: int) -> dict:
    """All figures, by name."""
    pipe, judges = Pipeline.from_pretrained(assets / "sdxl"), assets / "judges"
    clip = ClipScore(judges / "clip")
    first_keypoints = load_keypoint_net(assets / "sdxl" / "face_detector")
    keypoints = load_keypoint_net(judges / "face_detector")
    parts = load_arcface(judges / "face_parts" / "model.safetensors", input_size=PARTS_SIDE).model
    figures = networks.measure_vae(pipe.model.vae)
    for name, folder in (("face_net", assets), ("face_judge", judges)):
        weights = folder / "face_net" / "model.safetensors"
        net = load_arcface(weights, input_size=FACE_SIDE).model
        figures |= networks.measure_face_net(net, keypoints, name)
    figures |= networks.measure_keypoints(first_keypoints)
    figures |= networks.measure_keypoints(keypoints, "judge_")
    figures |= networks.measure_clip(ClipScore(assets / "clip"))
    figures |= networks.measure_clip(clip, "clip_judge")
    figures |= networks.measure_image_tower(load_vision_tower(assets / "clip")[0])
    figures |= networks.measure_parts_judge(parts, keypoints)
    judge = networks.parts_judge(parts, keypoints)
    figures |= generated.measure_base(pipe, clip, judge, out, samples)
    if (assets / "photomaker-v1.safetensors").exists():
        faces = open_face_embedder(judges / "face_net", f"keypoints:{judges / 'face_detector'}")
        figures |= generated.measure_photomaker(assets, clip, faces)
    return figures


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m persongen_jax.miniature.figures", description=__doc__
    )
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder of the checkpoints")
    parser.add_argument("--out", type=Path, help="folder for figures.json (default: the assets)")
    parser.add_argument("--samples", type=int, default=400, help="of text-to-image (default: 400)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="text that holds the tables")
    args = parser.parse_args(argv)
    out = args.out or args.assets
    out.mkdir(parents=True, exist_ok=True)
    if args.table:  # a text without marks is refused now, not after minutes
        insert(args.table, "sizes", sizes(args.assets))
    start = time.perf_counter()
    figures = measure(args.assets, out, args.samples)
    write_json(out / "figures.json", figures)
    if args.table:
        insert(args.table, "figures", table(figures))
    print(json.dumps(figures, indent=1))
    print(f"{out / 'figures.json'}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
