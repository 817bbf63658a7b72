"""The table of inputs names existing tests."""

import re
from pathlib import Path

from tests.compatibility.__main__ import entries

ROOT = Path(__file__).resolve().parents[2]


def test_every_row_names_a_test():
    for title, rows in entries().items():
        for kind, variant, _, test in rows:
            file, _, name = test.partition("::")
            function = re.escape(name.partition("[")[0])
            text = (ROOT / file).read_text()
            assert re.search(rf"^def {function}\(", text, re.MULTILINE), (
                title,
                kind,
                variant,
                test,
            )
