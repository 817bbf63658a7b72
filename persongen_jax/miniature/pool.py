"""The training images: people of the training set, drawn once, stored in the work folder."""

import functools
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.files import atomic_write
from data_pipeline.prompts import Tokenizers, join_parts, split_at_trigger
from data_pipeline.text_files import read_json
from persongen_jax.weights.tiny_tokenizer import SDXL_PAD_TOKENS, write_tiny_tokenizer

PEOPLE, PICTURES = 4000, 20
CHUNK = 1000
FIELDS = ("face_box", "landmarks", "keypoints", "visibility")


class Pool:
    """Image number i shows person i // PICTURES, all [n, ...]; ``images`` uint8 on disk."""

    face_box: np.ndarray
    landmarks: np.ndarray
    keypoints: np.ndarray
    visibility: np.ndarray

    def __init__(self, folder: Path):
        self.folder = folder
        self.images = np.load(folder / "images.npy", mmap_mode="r")
        arrays = np.load(folder / "truth.npz")
        for name in FIELDS:
            setattr(self, name, arrays[name])
        texts = read_json(folder / "captions.json")
        self.captions, self.backgrounds, self.bodies = texts
        self.person = (np.arange(len(self.images)) // PICTURES).astype(np.int32)

    def __len__(self):
        return len(self.images)

    @property
    def people(self) -> int:
        return len(self) // PICTURES

    @functools.cached_property
    def prompts(self) -> list[tuple[str, str, str, str]]:
        """Per image: the whole prompt without trigger, and its three parts."""
        prompts = []
        parts = zip(self.captions, self.backgrounds, self.bodies, strict=True)
        for general, background, body in parts:
            general = "".join(split_at_trigger(general))
            prompts.append((join_parts(general, background, body), general, background, body))
        return prompts

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the people, boxes and captions of the images."""
        digest = hashlib.sha256(json.dumps([self.captions, self.backgrounds, self.bodies]).encode())
        for name in FIELDS:
            digest.update(np.ascontiguousarray(getattr(self, name)).data)
        return digest.hexdigest()[:16]


def open_pool(work: Path, people: int = PEOPLE) -> Pool:
    """Draw ``people`` people in two processes unless they exist already."""
    folder = work / "pool"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "images.npy").exists():
        start, pictures = time.perf_counter(), people * PICTURES
        chunks = [(i, min(i + CHUNK, pictures)) for i in range(0, pictures, CHUNK)]
        if len(chunks) == 1:
            parts = [_draw(*chunks[0])]
        else:
            with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
                parts = pool.starmap(_draw, chunks)
        arrays: dict[str, Any] = {
            name: np.concatenate([part[name] for part in parts]) for name in FIELDS
        }
        np.savez(folder / "truth.npz", **arrays)
        texts = [[text for part in parts for text in part["texts"][i]] for i in range(3)]
        (folder / "captions.json").write_text(json.dumps(texts))
        cached_array(
            folder / "images.npy", lambda: np.concatenate([part["images"] for part in parts])
        )
        print(f"drew {pictures} pictures in {time.perf_counter() - start:.0f} s")
    return Pool(folder)


def _draw(start: int, end: int) -> dict:
    from data_pipeline.drawing import people

    number = np.arange(start, end)
    drawn = people.examples("in_train", number // PICTURES, number, 64)
    part: dict[str, Any] = {name: np.asarray(getattr(drawn, name)) for name in FIELDS}
    part["images"] = drawn.images
    part["texts"] = (drawn.captions, drawn.backgrounds, drawn.bodies)
    return part


def prompt_ids(pool: Pool, tokenizers: Tokenizers) -> np.ndarray:
    """[n, 4, 2, 77] uint16, the tokens of ``pool.prompts``, cached beside the pool."""

    def encode_all():
        parts = (
            tokenizers.encode_many(
                [text for texts in pool.prompts[i : i + CHUNK] for text in texts]
            )
            for i in range(0, len(pool), CHUNK)
        )
        ids = np.concatenate([part.astype(np.uint16) for part in parts])
        return ids.reshape(len(pool), -1, *ids.shape[1:])

    return cached_array(pool.folder / "prompt_ids.npy", encode_all)


def cached_array(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in the file ``path``; ``make`` creates it if there is no such file yet."""
    if not path.exists():
        with atomic_write(path) as partial, open(partial, "wb") as file:
            np.save(file, make())
    return np.load(path, mmap_mode="r")


def open_tokenizers(work: Path) -> Tokenizers:
    """Both tokenizers of the captions' words, written if they are not there yet."""
    from data_pipeline.drawing.people import vocabulary

    for name, pad_token in zip(("tokenizer", "tokenizer_2"), SDXL_PAD_TOKENS, strict=True):
        if not (work / name / "merges.txt").exists():
            write_tiny_tokenizer(work / name, pad_token, vocabulary())
    return Tokenizers.from_pretrained(work)
