"""Sets of people whose images are indices: one pixel, and a table of what a judge returns."""

import numpy as np

from persongen_jax.metrics.base import Generated, Known, Owner, People
from persongen_jax.metrics.face_judge import FaceJudge


def pictures(numbers):
    """uint8 [n, 1, 1, 3], each an index into the table."""
    return np.array(numbers, np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=-1)


def people(numbers_by_name) -> People:
    """Name to the indices of all images, the reference first."""

    def owner(name, numbers):
        def read(limit=None):
            return list(pictures(numbers[:limit]))

        return Owner(name, lambda: read(1), read)

    return People(lambda: [owner(name, numbers) for name, numbers in numbers_by_name.items()])


def known_set(numbers_by_name, others=None) -> Known:
    return Known("in_train", people(numbers_by_name), people(others or {}))


def generated(numbers, owners, **more) -> Generated:
    return Generated(pictures(numbers), list(owners), **more)


class TableEmbedder:
    """A face embedder that looks up images in ``table`` [n, d]; without a face unless ``found``."""

    detector_name = "table"
    networks = ()

    def __init__(self, table, found=None):
        self.table = np.asarray(table, float)
        self.found = np.ones(len(self.table), bool) if found is None else np.asarray(found)
        self.calls = []

    def detect(self, images):
        return [None] * len(images)

    def embed(self, images, detections=None):
        numbers = [int(image[0, 0, 0]) for image in images]
        self.calls.append(numbers)
        return self.table[numbers], self.found[numbers]


class TableJudges:
    """What open_metrics passes to a metric, with this table as ``faces``."""

    def __init__(self, table, found=None):
        self.faces = FaceJudge(TableEmbedder(table, found))
