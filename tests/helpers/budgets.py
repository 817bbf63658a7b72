"""What each folder of tests may cost, and the table of it at the end of a run."""

from collections import Counter

# Seconds of all workers together on two cores with nothing compiled before: (default, --runslow).
BUDGETS = {}
SLACK = 1.25  # machines differ


def seconds_by_folder(reports) -> Counter:
    """Set-up and tear-down included."""
    found = Counter()
    for report in reports:
        parts = report.nodeid.split("::")[0].split("/")
        found["/".join(parts[:2])] += report.duration
    return found


def table(seconds: Counter, budgets: dict, slow: bool) -> list[str]:
    """A line per folder, the most expensive first; overruns are marked."""
    lines = []
    for folder, spent in seconds.most_common():
        budget = budgets.get(folder, (0, 0))[slow]
        mark = "  over its budget" if spent > budget * SLACK else ""
        lines.append(f"{spent:7.0f} s of {budget:4d} s  {folder}{mark}")
    return lines
