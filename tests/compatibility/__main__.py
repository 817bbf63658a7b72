"""Run the tests of every kind and variant of input, and generate docs/compatibility.md.

    python -m tests.compatibility --out docs/compatibility.md

The modules next to this one list (kind, variant, what happens, test); a row says what happens if
its test passes now, and otherwise that it failed or did not run.
"""

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest

PARTS = {
    "recognise": "Base models",
    "adapters": "Adapters",
    "controlnets": "ControlNets",
    "encoders": "Image encoders and CLIP",
    "text": "Text, prompts, options, the workdir",
    "pictures": "Pictures",
    "photographs": "One's own photographs",
}
HEAD = """# Inputs as people have them: kind, variant, what happens

Written by `python -m tests.compatibility --out docs/compatibility.md`, which runs the tests
that `tests/compatibility/` names; a row's test passed then, unless the row says otherwise.
"""


class Outcomes:
    """A pytest plugin: the worst outcome of each test, and of all its parametrisations together."""

    def __init__(self):
        self.found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report):
        for name in {report.nodeid, report.nodeid.partition("[")[0]}:
            if report.failed or (report.when == "call" and name not in self.found):
                self.found[name] = report.outcome
            elif report.skipped:
                self.found.setdefault(name, "skipped")


def entries() -> dict[str, list[tuple[str, str, str, str]]]:
    """Rows by part; ValueError for a part without a title."""
    package = importlib.import_module("tests.compatibility")
    names = [m.name for m in pkgutil.iter_modules(package.__path__)]
    names = [name for name in names if not name.startswith(("__main__", "test_"))]
    if set(names) != set(PARTS):
        raise ValueError(f"tests/compatibility has {sorted(names)}, PARTS {sorted(PARTS)}")
    return {
        title: importlib.import_module(f"tests.compatibility.{name}").ENTRIES
        for name, title in PARTS.items()
    }


def table(rows, found) -> str:
    lines = ["| kind | variant | what happens |", "|---|---|---|"]
    for kind, variant, happens, test in rows:
        outcome = found.get(test, "not run")
        happens = happens if outcome == "passed" else f"**{outcome}**: {happens}"
        cells = (text.replace("|", "\\|") for text in (kind, variant, happens))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m tests.compatibility", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    args = parser.parse_args(argv)
    parts, outcomes = entries(), Outcomes()
    tests = dict.fromkeys(test for rows in parts.values() for *_, test in rows)
    pytest.main(["-q", "--runslow", *tests], plugins=[outcomes])
    sections = [f"## {title}\n\n{table(rows, outcomes.found)}" for title, rows in parts.items()]
    passed = sum(outcomes.found.get(test) == "passed" for test in tests)
    counted = f"{sum(map(len, parts.values()))} rows, {len(tests)} tests, {passed} passed."
    text = "\n\n".join([HEAD.strip(), counted, *sections]) + "\n"
    if args.out:
        args.out.write_text(text)
    print(text if not args.out else counted)
    sys.exit(passed < len(tests))


if __name__ == "__main__":
    main()
