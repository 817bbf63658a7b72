"""What each folder of tests may cost, and the table of it at the end of a run."""

from collections import Counter

# Seconds of all workers together on two cores with nothing compiled before: (default, --runslow).
BUDGETS = {
    "tests": (5, 120),  # the modules that lie in no folder
    "tests/aot": (15, 80),
    "tests/bench": (10, 180),
    "tests/compatibility": (5, 5),
    "tests/convert": (40, 50),
    "tests/data_pipeline": (100, 160),
    "tests/demo": (30, 120),
    "tests/diffusion": (25, 35),
    "tests/evaluation": (35, 45),
    "tests/features": (35, 110),
    "tests/fuzz": (10, 20),
    "tests/generate": (50, 85),
    "tests/helpers": (5, 5),
    "tests/launch": (10, 190),
    "tests/losses": (15, 60),
    "tests/methods": (135, 230),
    "tests/metrics": (25, 25),
    "tests/miniature": (70, 240),
    "tests/models": (120, 260),
    "tests/parallel": (50, 400),
    "tests/pipeline": (145, 210),
    "tests/study": (10, 130),
    "tests/systems": (50, 320),
    "tests/training": (120, 330),
    "tests/weights": (65, 120),
}
SLACK = 1.25  # machines differ


def seconds_by_folder(reports) -> Counter:
    """Set-up and tear-down included."""
    found = Counter()
    for report in reports:
        parts = report.nodeid.split("::")[0].split("/")
        folder = "tests" if parts[1].endswith(".py") else "/".join(parts[:2])
        found[folder] += report.duration
    return found


def table(seconds: Counter, budgets: dict, slow: bool) -> list[str]:
    """A line per folder, the most expensive first; overruns are marked."""
    lines = []
    for folder, spent in seconds.most_common():
        budget = budgets.get(folder, (0, 0))[slow]
        mark = "  over its budget" if spent > budget * SLACK else ""
        lines.append(f"{spent:7.0f} s of {budget:4d} s  {folder}{mark}")
    return lines
