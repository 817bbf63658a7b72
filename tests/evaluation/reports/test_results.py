"""What of measured folders is shown: the best and the worst, the failed, and an escaped page."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from persongen_jax.evaluation.folders.entries import Entry, Folder
from persongen_jax.evaluation.folders.pairing import differences
from persongen_jax.evaluation.folders.scoring import Scores
from persongen_jax.evaluation.reports.page import page
from persongen_jax.evaluation.reports.results import best_and_worst, image_rows
from persongen_jax.evaluation.reports.tables import as_markdown, failures
from persongen_jax.metrics.base import Generated, Metric, Values
from persongen_jax.metrics.images.copy import Copy
from persongen_jax.metrics.images.cosines import CosineOthers
from persongen_jax.metrics.images.rank1 import Rank1
from persongen_jax.metrics.measures import measure_of
from tests.metrics.known import known_set

NAN = float("nan")


class Grey(Metric):
    name, title, form = "grey", "grey | <level>", "{:.1f}"

    def __call__(self, generated, known):
        return None


def scores(name="<mine>", values=(1, 2, NAN, 4), person="<b>ann"):
    entries = [
        Entry(f"{i}.png", person if i < 2 else "bob", "p&q", "p&q", str(i)) for i in range(4)
    ]
    folder = Folder(name, Path(name), "a <layout>", entries, ["a note <i>"], {"x.png": "is <bad>"})
    pictures = [np.full((300, 200, 3), 40 * i, np.uint8) for i in range(4)]
    metric, found = Grey(None, None), Values(np.array(values, float))
    made = Generated(pictures, [entry.person for entry in entries])
    measures = {"grey": measure_of(metric, found, made)}
    return Scores(folder, pictures, {"grey": metric}, {"grey": found}, measures)


def test_best_and_worst():
    values = np.array([3, NAN, 1, 2, 5])
    assert best_and_worst(values, Rank1) == ([4, 0], [2, 3])
    assert best_and_worst(values, CosineOthers) == ([2, 3], [4, 0])
    best, worst = best_and_worst(np.array([1, 0, 1, 1.0]), Rank1)
    assert set(best) <= {0, 2, 3} and worst == [1]
    assert best_and_worst(np.ones(4), Rank1)[1] == []  # all right: there is no worst
    assert best_and_worst(np.array([NAN]), Rank1) == ([], [])
    assert best_and_worst(np.array([7.0]), Rank1) == ([0], [])
    # A copy is bad, and so is a face further from the person than another photograph of them.
    assert best_and_worst(np.array([0.5, 0.1, -0.6, NAN, 0.0]), Copy) == ([4, 1], [2, 0])


def test_nothing_is_left_out_in_silence():
    one = scores()
    assert failures(one) == [
        "left out, x.png: is <bad>",
        "grey | <level>: 1 of 4 images not measured: 2.png",
    ]
    one.folder.excluded = {f"{i}.png": "bad" for i in range(23)}
    assert failures(one)[20:22] == [
        "left out: 3 more, see images.csv",
        "grey | <level>: 1 of 4 images not measured: 2.png",
    ]
    one = scores()
    rows = image_rows([one])
    assert [row["grey"] for row in rows] == [1, 2, None, 4, None]
    assert [row["excluded"] for row in rows] == [None] * 4 + ["is <bad>"]
    text = as_markdown([one], [], ["of all"])
    assert "| grey \\| <level> | 2.3 |" in text and "left out, x.png: is <bad>" in text
    assert "- a note <i>" in text and "- of all" in text


class Tags(HTMLParser):
    """Checks that tags are closed in order, and counts them."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_holds_everything_and_fetches_nothing():
    one, two = scores(), scores("other", (2, 2, 3, 7))
    known = known_set({"<b>ann": [5], "bob": []})
    text = page([one, two], [known, known], differences(one, two), ["of all <x>"])
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    names = [tag for tag, _ in tags.seen]
    assert not {"script", "link", "i", "x", "level", "bad"} & set(names)
    sources = [found["src"] for tag, found in tags.seen if tag == "img"]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"https?:|url\(", text)
    plain = re.sub(r'"data:[^"]*"', "", text)
    for said in (
        "&lt;b&gt;ann",
        "p&amp;q",
        "is &lt;bad&gt;",
        "&lt;mine&gt; - other",
        "of all &lt;x",
    ):
        assert said in plain
    assert "grey | &lt;level&gt;: not measured" in plain and "grey | &lt;level&gt;: worst" in plain
    assert "1 of 4 not compared: 1 not measured" in plain
    assert names.count("table") == 2
