"""Drawn people with ground truth, written as a folder of images with a manifest.

    python -m data_pipeline.people --out data/people --identities 20 --pictures 12 --split in_train

writes ``images/``, ``manifest.jsonl`` (data_pipeline.records.manifest), ``ground_truth.jsonl`` (per
line of the manifest: image, face_box, landmarks, keypoints, visibility, attributes) and
``sheet.png``, one row per person. The same arguments write the same bytes. The people themselves
are in drawing/people.py.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.cli import command
from data_pipeline.drawing.identities import SPLITS
from data_pipeline.drawing.people import contact_sheet, examples
from data_pipeline.drawing.portrait import People
from data_pipeline.records.drawn import group_of, plain_numbers
from data_pipeline.records.manifest import write_manifest
from data_pipeline.records.schema import Record

GROUND_TRUTH = "ground_truth.jsonl"
SHEET_ROWS, SHEET_COLUMNS = 24, 16
WRITE_BATCH = 256


def write_people(
    out: str | Path, *, identities: int, pictures: int, split: str, size: int = 64, seed: int = 0
) -> list[Record]:
    """Write the folder that the module's docstring describes; return its records."""
    out = Path(out)
    if identities < 1 or pictures < 2 or size < 16:
        raise ValueError(
            "at least 1 identity, 2 pictures of each (a reference and a target) and 16 pixels are "
            "needed"
        )
    (out / "images").mkdir(parents=True, exist_ok=True)
    records, sheet = [], []
    with open(out / GROUND_TRUTH, "w", encoding="utf-8") as truth:
        for start in range(0, identities * pictures, WRITE_BATCH):
            place = np.arange(start, min(start + WRITE_BATCH, identities * pictures))
            drawn = examples(split, place // pictures, place, size, seed)
            for i, number in enumerate(place):
                image = f"images/{drawn.identity[i]}_{number % pictures:03d}.png"
                Image.fromarray(drawn.images[i]).save(out / image)
                records.append(_record(out / image, drawn, i))
                truth.write(json.dumps({"image": image, **_truth(drawn, i)}) + "\n")
            shown = (place // pictures < SHEET_ROWS) & (place % pictures < SHEET_COLUMNS)
            sheet.append(drawn.images[shown])
    write_manifest(out, records)
    images = np.concatenate(sheet)
    Image.fromarray(contact_sheet(images, min(pictures, SHEET_COLUMNS))).save(out / "sheet.png")
    return records


def _record(path: Path, drawn: People, i: int) -> Record:
    return Record(
        image=str(path),
        identity=str(drawn.identity[i]),
        caption=drawn.captions[i],
        background=drawn.backgrounds[i],
        body=drawn.bodies[i],
        face_box=plain_numbers(drawn.face_box[i]),
        group=group_of(drawn, i),
    )


def _truth(drawn: People, i: int) -> dict:
    return {
        "identity": str(drawn.identity[i]),
        "face_box": plain_numbers(drawn.face_box[i]),
        "landmarks": [plain_numbers(point) for point in drawn.landmarks[i]],
        "keypoints": [plain_numbers(point) for point in drawn.keypoints[i]],
        "visibility": drawn.visibility[i].tolist(),
        "attributes": {name: values[i].item() for name, values in drawn.attributes.items()},
    }


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.people",
        description="Draws portraits of made-up people, with captions and ground truth.",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--identities", type=int, default=20, metavar="N", help="default: 20")
    parser.add_argument(
        "--pictures", type=int, default=12, metavar="M", help="pictures per identity (default: 12)"
    )
    parser.add_argument("--split", choices=SPLITS, default="in_train", help="default: in_train")
    parser.add_argument("--size", type=int, default=64, help="side in pixels (default: 64)")
    parser.add_argument("--seed", type=int, default=0, help="of people and pictures (default: 0)")
    parser.add_argument(
        "--force",
        action="store_true",
        help="write even if DIR holds files that this command did not make",
    )
    args = vars(parser.parse_args(argv))
    out, force = args.pop("out"), args.pop("force")
    foreign = out.is_dir() and any(out.iterdir()) and not (out / GROUND_TRUTH).exists()
    if foreign and not force:
        raise FileExistsError(
            f"{out} holds files that this command did not make; choose another folder, or pass "
            "--force to write among them"
        )
    records = write_people(out, **args)
    print(f"{out}: {len(records)} pictures of {args['identities']} people ({args['split']})")


if __name__ == "__main__":
    main()
