"""The judge of inner faces: are eyes, brows and mouth there, recognisable, and in their places?

Trained on drawn portraits: a third are whole, in the others three parts of ten are missing, smeared
or moved (data_pipeline.drawing.faults). Its crop is the face box's, not the landmarks': an eye in a
wrong place must not move the crop with it.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy.ndimage import uniform_filter

from data_pipeline.drawing import people
from data_pipeline.examples.fields import Batch
from data_pipeline.pictures.transforms import square_face_crop
from persongen_jax.miniature import sizes
from persongen_jax.miniature.pool import cached_array
from persongen_jax.miniature.systems.base import Drawn, PoolSystem
from persongen_jax.models.faces.iresnet import IResNet, normalise_faces

FACES = 24_000
FIRST_PICTURE = 9_000_000  # variations that neither the pool nor a measurement contains
JITTER = 1.0  # pixels: a judge's boxes are not exact
BLURRED = 0.3  # of the crops are softened a little, as generated ones are
ROWS = 2000


class FaceParts(PoolSystem):
    """Judges the parts of an inner face, people.PARTS.

    Arrays of an example:
        crop: [s, s, 3] uint8.
        present: [5] float32, 1 or 0.
    """

    statistics = True

    def network(self) -> IResNet:
        return IResNet(sizes.PARTS_JUDGE, rngs=nnx.Rngs(self.config.seed))

    def source(self) -> Drawn:
        self.crops, self.present = draw_crops(self.work / "pool")
        digest = hashlib.sha256(self.crops.tobytes() + self.present.tobytes()).hexdigest()
        return Drawn(self.example, seed=self.config.seed, fingerprint=digest[:16])

    def example(self, rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        row = int(rng.integers(len(self.crops)))
        crop, present = self.crops[row], self.present[row]
        if rng.random() < 0.5:  # a mirror swaps left and right
            crop, present = crop[:, ::-1], present[[1, 0, 3, 2, 4]]
        if rng.random() < BLURRED:
            crop = uniform_filter(crop, (2, 2, 1), mode="nearest")
        return {"crop": np.ascontiguousarray(crop), "present": present}

    def losses(self, model: Any, batch: Batch, draws: dict[str, jax.Array]) -> dict[str, jax.Array]:
        logits = model(normalise_faces(batch["crop"]), use_running_average=False)
        loss = optax.sigmoid_binary_cross_entropy(logits, batch["present"]).mean(-1)
        right = ((logits > 0) == (batch["present"] > 0)).mean(-1).astype(jnp.float32)
        return {"loss": loss, "right": right}


def faults_of(rows: np.ndarray) -> people.Faults:
    """Every third face is whole."""
    faults = people.Faults.draw(rows)
    whole = rows % 3 == 0
    return dataclasses.replace(
        faults,
        missing=faults.missing & ~whole[:, None],
        smeared=faults.smeared & ~whole[:, None],
        offset=faults.offset * ~whole[:, None, None],
    )


def parts_crop(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The judge's input from an image and a face box in pixels, [s, s, 3] uint8."""
    from PIL import Image

    side = sizes.PARTS_SIDE
    crop = Image.fromarray(square_face_crop(image, box))
    return np.asarray(crop.resize((side, side), Image.Resampling.BICUBIC))


def draw_crops(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Faces with faults_of's faults, cut by jittered boxes, cached on disk.

    Returns:
        (crops [FACES, s, s, 3] uint8, present [FACES, 5] float32, 1 or 0).
    """

    def draw_all():
        noise = np.random.default_rng(0).normal(0, JITTER, (FACES, 4))
        crops = []
        for start in range(0, FACES, ROWS):
            rows = np.arange(start, min(start + ROWS, FACES))
            drawn = people.examples(
                *("in_train", rows, FIRST_PICTURE + rows),
                framing_weights=(1, 0, 0),
                faults=faults_of(rows),
            )
            boxes = drawn.face_box + noise[rows]
            crops += [parts_crop(*pair) for pair in zip(drawn.images, boxes, strict=True)]
        return np.stack(crops)

    present = cached_array(
        folder / "faulty_faces_present.npy",
        lambda: faults_of(np.arange(FACES)).present.astype(np.float32),
    )
    return cached_array(folder / "faulty_faces.npy", draw_all), present
