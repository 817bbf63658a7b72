"""Stores what the public PyTorch classes give for every test that compares with it.

    python -m tests.goldens.record [pytest's arguments]

Without arguments the old files are removed first, so that nothing stays that no test reads.
"""

import sys

import pytest

from tests.helpers.goldens import FOLDER


def main(arguments):
    if not arguments:
        for path in FOLDER.glob("*.npz"):
            path.unlink()
    return pytest.main(["-q", "--record-goldens", *(arguments or ["tests"])])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
