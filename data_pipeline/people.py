"""Drawn people with ground truth: the miniature's images, made instead of downloaded.

    python -m data_pipeline.people --out data/people --identities 20 --pictures 12 --split in_train

writes ``images/``, ``manifest.jsonl`` (data_pipeline.records.manifest), ``ground_truth.jsonl`` (per
line of the manifest: image, face_box, landmarks, keypoints, visibility, attributes) and
``sheet.png``, one row per person. Same arguments, same bytes; images are independent.

As a library, everything is a function of seeds; nothing is stored:

    people = make_identities("in_train", 100)
    drawn = render(people, draw_pictures(seed=7, count=100), size=64)
    drawn.images, drawn.landmarks, drawn.captions, ...              # portrait.People
    examples("in_train", identity_indices=[3, 3, 8], picture_seeds=[0, 1, 2])

The splits hold different people by construction. ``out_of_domain`` has hair, tones and proportions
that the others never show; in ``look_alikes`` each group of ten people shares everything but eyes,
brows, nose and mouth.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.drawing.captions import TRIGGER, vocabulary, words_of
from data_pipeline.drawing.identities import SPLITS, Identities, identities_of
from data_pipeline.drawing.pictures import (
    CLOTHES,
    COLOUR_NAMES,
    EXPRESSIONS,
    FRAMING_WEIGHTS,
    HATS,
    SCENES,
    Pictures,
    pictures_of,
)
from data_pipeline.drawing.portrait import People, render
from data_pipeline.drawing.randomness import EXAMPLE, PICTURE, fold
from data_pipeline.prompts import split_at_trigger
from data_pipeline.records.manifest import write_manifest
from data_pipeline.records.schema import Record

__all__ = [
    "CLOTHES",
    "COLOUR_NAMES",
    "EXPRESSIONS",
    "HATS",
    "SCENES",
    "SPLITS",
    "TRIGGER",
    "Identities",
    "People",
    "Pictures",
    "contact_sheet",
    "draw_pictures",
    "example",
    "examples",
    "identities_of",
    "identity_of",
    "make_identities",
    "records_of",
    "render",
    "vocabulary",
    "words_of",
    "write_people",
]

GROUND_TRUTH = "ground_truth.jsonl"
SHEET_ROWS, SHEET_COLUMNS = 24, 16
WRITE_BATCH = 256


def make_identities(split: str, count: int, seed: int = 0) -> Identities:
    """The first ``count`` people of a split; SPLITS names the splits."""
    return identities_of(split, np.arange(count), seed)


def identity_of(split: str, index: int, seed: int = 0) -> Identities:
    """One person, as a batch of one: row ``index`` of make_identities(split, n, seed)."""
    return identities_of(split, [index], seed)


def draw_pictures(seed: int, count: int, framing_weights=FRAMING_WEIGHTS) -> Pictures:
    """``count`` variations. ``framing_weights`` are for portrait, half and full figures."""
    return pictures_of(fold(PICTURE, seed, np.arange(count)), framing_weights)


def examples(
    split: str,
    identity_indices,
    picture_seeds,
    size: int = 64,
    seed: int = 0,
    framing_weights=FRAMING_WEIGHTS,
) -> People:
    """Person ``identity_indices[i]`` with variation ``picture_seeds[i]``, both [n] integers.

    A picture seed gives everyone the same variation; use different seeds for different images.
    """
    seeds = np.atleast_1d(np.asarray(picture_seeds, np.int64))
    people = identities_of(split, identity_indices, seed)
    return render(people, pictures_of(fold(EXAMPLE, seed, seeds), framing_weights), size)


def example(
    split: str, identity_index: int, picture_seed: int, size: int = 64, seed: int = 0
) -> People:
    """One image, as a batch of one."""
    return examples(split, [identity_index], [picture_seed], size, seed)


def records_of(drawn: People, images: list[str], trigger_word: str = TRIGGER) -> list[Record]:
    """A Record per image, with its ground truth; ``images`` are their names."""
    records = []
    for i, image in enumerate(images):
        before, after = split_at_trigger(drawn.captions[i], TRIGGER)
        records.append(
            Record(
                image=image,
                identity=str(drawn.identity[i]),
                caption=f"{before} {trigger_word}{after}",
                background=drawn.backgrounds[i],
                body=drawn.bodies[i],
                face_box=_numbers(drawn.face_box[i]),
                class_word=str(drawn.attributes["class_word"][i]),
                landmarks=tuple(map(_numbers, drawn.landmarks[i])),
                keypoints=tuple(map(_numbers, drawn.keypoints[i])),
                visibility=tuple(drawn.visibility[i].tolist()),
            )
        )
    return records


def write_people(
    out, *, identities: int, pictures: int, split: str, size: int = 64, seed: int = 0
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


def contact_sheet(images, columns: int) -> np.ndarray:
    """Tile [n, s, s, 3] into one image [rows * s, columns * s, 3]; missing ones are black."""
    count, size = images.shape[:2]
    rows = -(-count // columns)
    padded = np.zeros((rows * columns, *images.shape[1:]), np.uint8)
    padded[:count] = images
    grid = padded.reshape(rows, columns, size, size, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * size, columns * size, 3)


def _record(path: Path, drawn: People, i: int) -> Record:
    return Record(
        image=str(path),
        identity=str(drawn.identity[i]),
        caption=drawn.captions[i],
        background=drawn.backgrounds[i],
        body=drawn.bodies[i],
        face_box=_numbers(drawn.face_box[i]),
    )


def _truth(drawn: People, i: int) -> dict:
    return {
        "identity": str(drawn.identity[i]),
        "face_box": _numbers(drawn.face_box[i]),
        "landmarks": [_numbers(point) for point in drawn.landmarks[i]],
        "keypoints": [_numbers(point) for point in drawn.keypoints[i]],
        "visibility": drawn.visibility[i].tolist(),
        "attributes": {name: values[i].item() for name, values in drawn.attributes.items()},
    }


def _numbers(values):
    """Plain numbers in pixels, rounded to more digits than anybody needs."""
    return tuple(round(float(value), 3) for value in values)


def main(argv=None) -> int:
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
    try:
        if foreign and not force:
            raise FileExistsError(
                f"{out} holds files that this command did not make; choose another folder, or pass "
                "--force to write among them"
            )
        records = write_people(out, **args)
    except (ValueError, OSError) as error:
        print(f"people: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {len(records)} pictures of {args['identities']} people ({args['split']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
