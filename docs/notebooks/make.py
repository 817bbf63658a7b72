"""Writes the notebooks from their cells: python docs/notebooks/make.py

Cells that all of them have are in shared.py, each notebook's own in cells_<name>.py. The files that
are written have no outputs, and the same cells give the same bytes.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("facecdm", "generate", "train")


def notebook(cells: list[tuple[str, str]]) -> str:
    """The text of an .ipynb file (nbformat 4.5) with these ("markdown" or "code", source)."""
    made = []
    for number, (kind, source) in enumerate(cells):
        lines = source.strip("\n").splitlines(keepends=True)
        cell = {"cell_type": kind, "id": f"cell-{number:02d}", "metadata": {}, "source": lines}
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    held = {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(held, indent=1, ensure_ascii=False) + "\n"


def made() -> dict[Path, str]:
    """{file: its text} of all notebooks."""
    sys.path.insert(0, str(HERE))
    try:
        cells = {name: __import__(f"cells_{name}").CELLS for name in NAMES}
    finally:
        sys.path.remove(str(HERE))
    return {HERE / f"{name}.ipynb": notebook(own) for name, own in cells.items()}


if __name__ == "__main__":
    for path, text in made().items():
        path.write_text(text, encoding="utf-8")
        print(path)
