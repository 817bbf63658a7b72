"""The notebooks are what their cells give, and run on the miniature from first cell to last."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
ROOT = FOLDER.parents[1]
NAMES = ("facecdm", "generate", "train")
# All that differs from what is committed: how many steps are trained.
STEPS = re.compile(r"^STEPS = \d+(?=  # of training)", re.MULTILINE)


def test_the_files_are_what_their_cells_give():
    made = runpy.run_path(str(FOLDER / "make.py"))["made"]()
    assert sorted(made) == sorted(FOLDER.glob("*.ipynb")) and len(made) == len(NAMES)
    for path, text in made.items():
        assert path.read_text(encoding="utf-8") == text, f"run docs/notebooks/make.py: {path.name}"
        assert len(re.findall(r"^# =+ Settings", source(json.loads(text)), re.MULTILINE)) == 1


def source(held):
    return "\n".join("".join(cell["source"]) for cell in held["cells"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_runs_on_the_miniature(name, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    held = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(held)
    changed = 0
    for cell in held.cells:
        if cell.cell_type == "code":
            cell.source, count = STEPS.subn("STEPS = 4", cell.source)
            changed += count
    assert changed == (name != "generate")
    NotebookClient(held, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    nbformat.write(held, tmp_path / f"{name}.ipynb")  # to look at
    files = sorted((tmp_path / "work" / name / "images").rglob("*.png"))
    assert len(files) >= 8
    for path in files:
        image = Image.open(path)
        assert "trainedAlgorithmicMedia" in image.info["XML:com.adobe.xmp"]
        assert np.asarray(image).std() > 20
    shown = [out for cell in held.cells for out in cell.get("outputs", ()) if "data" in out]
    assert sum(out["data"].get("text/html", "").count("<img") for out in shown) >= len(files)
