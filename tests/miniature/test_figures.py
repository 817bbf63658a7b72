"""How figures are made of answers, and tables of figures."""

import numpy as np
import pytest

from persongen_jax.metrics.intervals.people import over_answers
from persongen_jax.miniature.elements.questions import with_word
from persongen_jax.miniature.figures.networks import first_rank, first_rank_in_groups
from persongen_jax.miniature.figures.samples import batched, mean_of, relative, share
from persongen_jax.miniature.figures.table import TITLES, insert, sizes, table


def test_a_share_says_whether_its_bar_is_met():
    right = np.arange(100) % 10 > 0
    entry = share(right, bar=0.9, aim=0.95, judge="J")
    of = over_answers(right)
    assert entry == {
        "value": 0.9,
        "samples": 100,
        "interval": [round(of.low, 4), round(of.high, 4)],
        "bar": 0.9,
        "met": True,
        "aim": 0.95,
        "judge": "J",
    }
    assert share(right, bar=0.91)["met"] is False
    assert mean_of(right * 1.0, np.arange(100), bar=0.91, at_most=True)["met"] is True


def test_dependent_answers_have_wider_intervals():
    right = np.repeat(np.arange(20) % 2, 10)  # ten answers about each of twenty people

    def width(entry):
        low, high = entry["interval"]
        return high - low

    assert width(share(right, np.repeat(np.arange(20), 10))) > 2 * width(share(right))


def test_all_right_is_not_certain():
    """Ten people with ten right answers each are ten answers at most."""
    entry = share(np.ones(100), np.repeat(np.arange(10), 10))
    low, high = entry["interval"]
    assert low < 0.8 and high == 1.0 and entry["samples"] == 100
    with pytest.raises(ValueError, match="without an interval: one person"):
        share(np.ones(10), np.zeros(10))


def test_relative_is_a_ratio_with_the_interval_of_both():
    drawn, generated = np.arange(400) % 10 > 0, np.arange(400) % 4 > 0
    entry = relative(generated, drawn)
    assert (entry["generated"], entry["drawn"]) == (0.75, 0.9)
    assert entry["value"] == pytest.approx(0.75 / 0.9, abs=1e-4)
    low, high = entry["interval"]
    # The ratio's standard deviation by the first terms of its series, both sides independent.
    spread = 0.8333 * np.sqrt(0.25 / 0.75 / 400 + 0.1 / 0.9 / 400)
    assert low < entry["value"] < high and 0.7 < (high - low) / (2 * 1.96 * spread) < 1.3
    assert relative(drawn, drawn)["interval"] == [1.0, 1.0]  # pairs: the same prompts


def test_the_nearest_is_searched_among_all_or_in_the_own_group():
    names = np.array([f"p{i}" for i in range(20)])
    gallery = np.eye(20)
    twins = gallery[(np.arange(20) + 10) % 20]  # like somebody of the other group
    seen = 2 * twins + gallery
    assert not first_rank(seen, names, gallery, names).any()
    assert first_rank_in_groups(seen, names, gallery, names).all()
    assert not first_rank_in_groups(np.roll(gallery, 1, 0), names, gallery, names)[1:10].any()


def test_rows_are_filled_up_and_cut():
    seen = []

    def double(rows):
        seen.append(len(rows))
        return 2 * rows

    np.testing.assert_array_equal(batched(double, np.arange(130)), 2 * np.arange(130))
    assert len(set(seen)) == 1


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("red", "orange", "he is wearing an orange shirt and a red hat"),
        ("shirt", "cloak", "he is wearing a red cloak and a red hat"),
        ("red", "blue", "he is wearing a blue shirt and a red hat"),
    ],
)
def test_a_word_takes_its_article_along(old, new, text):
    assert with_word("he is wearing a red shirt and a red hat", old, new) == text


def test_tables_replace_what_is_between_their_marks(tmp_path):
    text = tmp_path / "page.md"
    text.write_text("before\n<!-- figures -->\nold\n<!-- /figures -->\nafter\n")
    right = np.arange(100) % 4 > 0
    figures = {
        "base_scene": relative(right, np.ones(100), bar=0.97, judge="CLIP judge"),
        "vae_face_psnr_db": mean_of(30.0 + right, np.arange(100), bar=29.0, aim=31.0),
    }
    insert(text, "figures", table(figures))
    assert text.read_text().startswith("before\n<!-- figures -->\n\n|")
    assert text.read_text().endswith("\n\n<!-- /figures -->\nafter\n")
    rows = [line.split(" | ") for line in table(figures).splitlines()[2:]]
    assert [row[0].strip("| ") for row in rows] == [TITLES[name] for name in sorted(figures)[::-1]]
    assert rows[0][1] == "30.75" and "met" in rows[0][3] and rows[0][4] == "31"
    assert rows[1][1] == "0.75 (0.75 of 1 on drawn ones)" and "**missed**" in rows[1][3]
    assert rows[1][5] == "CLIP judge"
    with pytest.raises(ValueError, match="put <!-- sizes --> and <!-- /sizes --> where"):
        insert(text, "sizes", "")


def test_sizes_are_of_folders_and_loose_files(tmp_path):
    (tmp_path / "net").mkdir()
    for name in ("net/a.safetensors", "net/b.safetensors", "loose.safetensors", "p.png"):
        (tmp_path / name).write_bytes(b"0" * 1_000_000)
    cells = [line.strip("| ").split(" | ") for line in sizes(tmp_path).splitlines()[2:]]
    found = {name.strip(): size.strip() for name, size in cells}
    assert found == {"loose.safetensors": "1.0", "net": "2.0", "all files, with pictures": "4.0"}
