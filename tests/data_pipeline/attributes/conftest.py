"""A folder of images in shades of grey, with a table."""

import pytest
from PIL import Image

from tests.data_pipeline.attributes.folders import shade


@pytest.fixture
def write(tmp_path):
    """Writes a folder "faces" of images 0.png, 1.png, ... of shades 0, 20, ... and its table."""
    folder = tmp_path / "faces"

    def write(text, n=4, name="labels.csv", encoding="utf-8"):
        folder.mkdir(exist_ok=True)
        for i in range(n):
            Image.fromarray(shade(i)).save(folder / f"{i}.png")
        (folder / name).write_bytes(text.encode(encoding))
        return folder

    return write
