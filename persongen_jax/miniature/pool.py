"""The training pictures: in-train people, drawn once, kept in the work folder."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np

from persongen_jax.prompts import join_parts, split_at_trigger

PEOPLE, PICTURES = 4000, 20
CHUNK = 4000
FIELDS = ("face_box", "landmarks", "keypoints", "visibility")


class Pool:
    """Pictures number i = person i // PICTURES, all [n, ...]; ``images`` uint8 on disk."""

    def __init__(self, folder: Path):
        self.images = np.load(folder / "images.npy", mmap_mode="r")
        arrays = np.load(folder / "truth.npz")
        for name in FIELDS:
            setattr(self, name, arrays[name])
        texts = json.loads((folder / "captions.json").read_text())
        self.captions, self.backgrounds, self.bodies = texts
        self.person = np.arange(len(self.images)) // PICTURES

    def __len__(self):
        return len(self.images)


def open_pool(work: Path) -> Pool:
    """Draws what is not there yet, in two processes."""
    folder = work / "pool"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "images.npy").exists():
        start = time.perf_counter()
        starts = list(range(0, PEOPLE * PICTURES, CHUNK))
        with multiprocessing.get_context("spawn").Pool(min(os.cpu_count(), len(starts))) as pool:
            parts = pool.map(_draw, starts)
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in FIELDS}
        np.savez(folder / "truth.npz", **arrays)
        texts = [[text for part in parts for text in part["texts"][i]] for i in range(3)]
        (folder / "captions.json").write_text(json.dumps(texts))
        partial = folder / "images.part.npy"
        np.save(partial, np.concatenate([part["images"] for part in parts]))
        partial.rename(folder / "images.npy")
        print(f"drew {PEOPLE * PICTURES} pictures in {time.perf_counter() - start:.0f} s")
    return Pool(folder)


def training_prompts(pool: Pool) -> list[tuple[str, str, str, str]]:
    """Per picture: the whole prompt without trigger, and its three parts."""
    prompts = []
    for general, background, body in zip(pool.captions, pool.backgrounds, pool.bodies, strict=True):
        general = "".join(split_at_trigger(general))
        prompts.append((join_parts(general, background, body), general, background, body))
    return prompts


def _draw(start: int) -> dict:
    from data_pipeline import people

    number = np.arange(start, start + CHUNK)
    drawn = people.examples("in_train", number // PICTURES, number, 64)
    part = {name: np.asarray(getattr(drawn, name)) for name in FIELDS}
    part["images"] = drawn.images
    part["texts"] = (drawn.captions, drawn.backgrounds, drawn.bodies)
    return part
