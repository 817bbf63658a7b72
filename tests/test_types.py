"""Every public function says what it takes and gives; mypy checks that it is so."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [
    path.relative_to(ROOT).as_posix()
    for package in ("persongen_jax", "data_pipeline")
    for path in sorted((ROOT / package).rglob("*.py"))
]


def untyped(body, inside: str = "") -> list[str]:
    """Names of public functions and methods with an argument or a result of no stated type."""
    found = []
    for node in body:
        name = getattr(node, "name", "")
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if isinstance(node, ast.ClassDef):
            found += untyped(node.body, f"{inside}{name}.")
        elif isinstance(node, ast.FunctionDef):
            arguments = node.args
            named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            missing = [
                a.arg for a in named if a.annotation is None and a.arg not in ("self", "cls")
            ]
            if node.returns is None and name != "__init__":
                missing.append("the result")
            if missing:
                found.append(f"{inside}{name}: {', '.join(missing)}")
    return found


@pytest.mark.parametrize("file", FILES)
def test_public_functions_are_typed(file):
    assert not untyped(ast.parse((ROOT / file).read_text()).body)
