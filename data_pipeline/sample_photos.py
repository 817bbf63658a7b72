"""A small training set of real photographs that needs no download.

    python -m data_pipeline.sample_photos --out data/sample --lfw 20

The photographs ship with scikit-image: the astronaut Eileen Collins (NASA, public domain), and the
100 faces of its LFW subset (grey, 25×25 pixels, of unnamed people; two of them may show the same
person). **There is one photograph per person.** Training needs at least two images of a person, so
each photograph is written in several versions: mirrored, cropped, lighter, darker. That is enough
to see the whole pipeline run and to overfit. It is not enough to learn identity: the versions share
one pose, one expression and one moment.

The folder gets ``manifest.jsonl``, ``images/``, ``SOURCE.txt`` and ``astronaut.png``, the plain
photograph for ``generate --reference``. Same scikit-image, same bytes.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.cli import command
from data_pipeline.faces.find import find_face
from data_pipeline.records.manifest import write_manifest
from data_pipeline.records.schema import Record

LFW_FACES = 100  # the subset's later images show no faces
LFW_SIDE = 100  # pixels, four times theirs
LFW_BOX = (0.1, 0.12, 0.9, 1.0)  # the face box in all of them, as fractions of the frame
MARK = "SOURCE.txt"
SOURCE = """Made by data_pipeline.sample_photos.

Photographs from scikit-image: "astronaut" (Eileen Collins; NASA, no known copyright restrictions)
and "lfw_subset" (faces of Labeled Faces in the Wild, http://vis-www.cs.umass.edu/lfw/).
Every identity here is ONE photograph in several versions (mirrored, cropped, lighter, darker).
"""


@dataclass(frozen=True)
class Variant:
    """One version of a photograph: a window, then mirroring, then exposure.

    ``window`` is (x0, y0, x1, y1) as fractions of the frame, ``exposure`` a factor on the light.
    ``scenery`` says whether the window still shows what the background caption describes.
    """

    name: str
    window: tuple[float, float, float, float] = (0, 0, 1, 1)
    mirror: bool = False
    exposure: float = 1.0
    scenery: bool = True

    def apply(
        self, image: np.ndarray, box: Sequence[float]
    ) -> tuple[np.ndarray, tuple[float, float, float, float]]:
        """The version of ``image`` [h, w, 3] uint8 and of the face box in its pixels."""
        height, width = image.shape[:2]
        left, right = (round(self.window[i] * width) for i in (0, 2))
        top, bottom = (round(self.window[i] * height) for i in (1, 3))
        image = image[top:bottom, left:right]
        height, width = image.shape[:2]
        x0, x1 = (min(max(x - left, 0), width) for x in (box[0], box[2]))
        y0, y1 = (min(max(y - top, 0), height) for y in (box[1], box[3]))
        if self.mirror:
            image, x0, x1 = image[:, ::-1], width - x1, width - x0
        if self.exposure != 1:
            # Light is linear before the display's gamma of about 2.2, not after it.
            light = (image / 255.0) ** 2.2 * self.exposure
            image = np.rint(np.clip(light, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8)
        return np.ascontiguousarray(image), (x0, y0, x1, y1)


ASTRONAUT_VARIANTS = (
    Variant("full"),
    Variant("full_mirrored", mirror=True),
    Variant("half", window=(0.05, 0, 0.9, 0.85)),
    Variant("half_mirrored_dark", window=(0.1, 0.02, 0.95, 0.87), mirror=True, exposure=0.6),
    Variant("bust_light", window=(0.12, 0, 0.9, 0.78), exposure=1.3),
    Variant("head", window=(0.2, 0, 0.72, 0.52), scenery=False),
)
LFW_VARIANTS = (
    Variant("full"),
    Variant("mirrored", mirror=True),
    Variant("close", window=(0.06, 0.08, 0.94, 0.96)),
    Variant("mirrored_dark", mirror=True, exposure=0.6),
)


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.sample_photos",
        description="Writes a small manifest folder of real photographs that ship with "
        "scikit-image. One photograph per person, in several versions: good for trying things "
        "out, not for learning identity.",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--lfw",
        type=int,
        default=20,
        metavar="N",
        help=f"add the first N of {LFW_FACES} grey 25x25 faces (default: 20)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="write even if DIR holds files that this command did not make",
    )
    args = parser.parse_args(argv)
    records = write_sample_photos(args.out, lfw=args.lfw, force=args.force)
    people = len({record.identity for record in records})
    print(f"{args.out}: {len(records)} pictures of {people} people, plain photograph astronaut.png")
    print(
        "Note: there is ONE photograph per person, in mirrored, cropped, lighter and darker "
        "versions. This tries the pipeline out; it cannot teach identity."
    )


def write_sample_photos(out: str | Path, lfw: int = 0, force: bool = False) -> list[Record]:
    """Write the folder and return its records; see the module's docstring."""
    out = Path(out)
    if not 0 <= lfw <= LFW_FACES:
        raise ValueError(f"--lfw {lfw}: between 0 and {LFW_FACES}")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists() and not force:
        raise FileExistsError(
            f"{out} holds files that this command did not make; choose another folder, or pass "
            "--force to write among them"
        )
    astronaut, faces = _photographs(lfw)
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text(SOURCE, encoding="utf-8")
    Image.fromarray(astronaut).save(out / "astronaut.png")

    records = []
    face_box = find_face(astronaut, "astronaut")
    for variant in ASTRONAUT_VARIANTS:
        records.append(
            _write(
                out,
                "astronaut",
                variant,
                astronaut,
                face_box,
                caption="a photo of a woman img in an orange space suit",
                background="a flag and a model of a space shuttle" if variant.scenery else "",
                body="she is wearing an orange space suit",
            )
        )
    box = tuple(part * LFW_SIDE for part in LFW_BOX)
    for i, face in enumerate(faces):
        for variant in LFW_VARIANTS:
            caption = "a grey photo of a person img"
            records.append(_write(out, f"lfw_{i:03d}", variant, face, box, caption=caption))
    write_manifest(out, records)
    return records


def _photographs(lfw: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The astronaut [512, 512, 3] and ``lfw`` faces [100, 100, 3], uint8."""
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError(
            "the photographs are scikit-image's: pip install 'persongen_jax[first_light]'"
        ) from error
    faces = []
    for grey in data.lfw_subset()[:lfw]:
        small = Image.fromarray(np.rint(grey * 255).astype(np.uint8))
        large = small.resize((LFW_SIDE, LFW_SIDE), Image.Resampling.BICUBIC)
        faces.append(np.asarray(large.convert("RGB")))
    return data.astronaut(), faces


def _write(out: Path, identity: str, variant: Variant, photograph, face_box, **texts) -> Record:
    image, box = variant.apply(photograph, face_box)
    path = out / "images" / f"{identity}_{variant.name}.png"
    Image.fromarray(image).save(path)
    return Record(image=str(path), identity=identity, face_box=box, **texts)


if __name__ == "__main__":
    main()
