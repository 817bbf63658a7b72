"""What the public PyTorch classes gave, stored: the default run compares with that.

With --runslow they run, and what is stored has to be what they give. With --record-goldens they
run and what they give is stored; `python -m tests.goldens.record` does it for all tests.
"""

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[1] / "goldens"
# Of the largest value. Processors round differently, and errors add up: over 20 DDIM steps with
# guidance, one differed from another by 1.1e-3; a twin that was changed differs by far more.
TOLERANCE = 5e-3
AGAIN = "if the twin changed on purpose: python -m tests.goldens.record"


class Golden:
    """``golden(compute)`` in a test is what ``compute()`` gives, arrays in any tree.

    The first call of a test is stored as "0", the next as "1"; what ``compute`` needs and is slow
    to make belongs inside it.
    """

    def __init__(self, node, mode: str):
        file, _, test = node.nodeid.removeprefix("tests/").partition(".py::")
        self.file, self.test = FOLDER / f"{file.replace('/', '-')}.npz", test
        self.mode, self.calls = mode, 0

    def __call__(self, compute):
        key, self.calls = f"{self.test} {self.calls}", self.calls + 1
        if self.mode == "stored":
            return self._stored(key)
        live = compute()
        if self.mode == "record":
            self._record(key, live)
        self._compare(key, live)
        return live

    def _stored(self, key):
        """The tree that was stored under ``key``: an array, or a dict or list of such."""
        found = {}
        if self.file.exists():
            with np.load(self.file) as arrays:
                found = {k: arrays[k] for k in arrays.files if k.split("|")[0] == key}
        if not found:
            raise AssertionError(f"nothing is stored for {key!r} in {self.file}; {AGAIN}")
        if list(found) == [key]:
            return found[key]
        return {path.split("|")[1]: value for path, value in found.items()}

    def _record(self, key, live):
        kept = {}
        if self.file.exists():
            with np.load(self.file) as arrays:
                kept = {k: arrays[k] for k in arrays.files if k.split("|")[0] != key}
        np.savez_compressed(self.file, **kept, **self._flat(key, live))

    def _flat(self, key, live):
        if isinstance(live, dict):
            return {f"{key}|{name}": np.asarray(value) for name, value in live.items()}
        return {key: np.asarray(live)}

    def _compare(self, key, live):
        stored = self._flat(key, self._stored(key))
        live = self._flat(key, live)
        assert stored.keys() == live.keys(), AGAIN
        for name, value in live.items():
            gap = np.abs(np.float64(stored[name]) - value).max(initial=0)
            limit = TOLERANCE * np.abs(value).max(initial=0)
            assert stored[name].shape == value.shape and gap <= limit, (name, gap, limit, AGAIN)
