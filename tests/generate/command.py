"""The command as tests call it."""

import numpy as np
from PIL import Image

from persongen_jax.generate import __main__ as generate

# One batch size and number of steps nearly everywhere, so one compiled program.
SAME = ["--no-compilation-cache", "--batch-size", "1", "--steps", "2"]


def run(base, out, *arguments):
    generate.main(["--base", str(base), "--out", str(out), *SAME, *map(str, arguments)])


def pixels(path):
    return np.asarray(Image.open(path))
