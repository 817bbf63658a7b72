"""The command with the same few settings, and what it reads and writes."""

import numpy as np
from PIL import Image

from persongen_jax.generate import __main__ as generate

# One batch size and number of steps nearly everywhere, so one compiled program.
SAME = ["--no-compilation-cache", "--batch-size", "1", "--steps", "2"]


def run(base, out, *arguments):
    generate.main(["--base", str(base), "--out", str(out), *SAME, *map(str, arguments)])


def pixels(path):
    return np.asarray(Image.open(path))


def image_file(path, size=(40, 48)):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return str(path)
