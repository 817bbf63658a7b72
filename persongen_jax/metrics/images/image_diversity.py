"""Image diversity: how different are a person's images (LPIPS, Zhang et al., arXiv 1801.03924)?

A method that always paints one picture has none. Pairs are of one person, over all prompts.
"""

import numpy as np

from data_pipeline.pictures.transforms import fit_image
from persongen_jax.metrics.base import Generated, Known, Values
from persongen_jax.metrics.judged import JudgedByLpips

SIZE = 256  # pixels of a side, to which images are resized bicubically; their centre, if not square


class ImageDiversity(JudgedByLpips):
    """Mean LPIPS of an image to the other images of its owner, from 0 on."""

    name, title = "image_diversity", "image diversity"

    def __call__(self, generated: Generated, known: Known) -> Values:
        owners = np.asarray(generated.owners, str)
        values = np.full(len(owners), np.nan)
        for name in dict.fromkeys(owners.tolist()):
            rows = np.flatnonzero(owners == name)
            values[rows] = self.to_others([fitted(generated.images[int(row)]) for row in rows])
        return Values(values, facts={"net": self.lpips.net, "pixels": SIZE})


def fitted(image: np.ndarray) -> np.ndarray:
    """uint8 RGB [h, w, 3] to [SIZE, SIZE, 3]."""
    return np.rint(255 * fit_image(image, (SIZE, SIZE))).astype(np.uint8)
