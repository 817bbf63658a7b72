"""Drawn people whom no shipped network has seen, as examples of references."""

from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.drawing.people import examples

COUNT, SIDE = 4, 256


def draw_strangers(folder: Path) -> list[str]:
    """Files of drawn portraits, one of each stranger."""
    number = np.arange(COUNT)
    drawn = examples("out_of_train", number, number, size=SIDE, framing_weights=(1, 0, 0))
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"stranger-{n + 1}.png" for n in number]
    for image, file in zip(drawn.images, files, strict=True):
        Image.fromarray(image).save(file)
    return [str(file) for file in files]
