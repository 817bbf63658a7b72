"""Blind rating: pairs, the page, and what its answers say."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from persongen_jax import evaluate
from persongen_jax.evaluation.of_folders import open_together
from persongen_jax.evaluation.rating.answers import preferences
from persongen_jax.evaluation.rating.pairs import draw_pairs

PEOPLE, SEEDS = ("ann", "bob", "zoë </script>"), range(4)


@pytest.fixture
def folders(tmp_path):
    """Two folders of one colour each, by a file that says whose images they are."""
    for name, colour in (("a", (250, 0, 0)), ("b", (0, 0, 250))):
        lines = []
        for i, person in enumerate(PEOPLE):
            for seed in SEEDS:
                file = f"{i}_{seed}.png"
                (tmp_path / name).mkdir(exist_ok=True)
                Image.new("RGB", (24, 24), colour).save(tmp_path / name / file)
                line = {"file_name": file, "person": person, "prompt": "a person", "seed": seed}
                lines.append(json.dumps(line))
        (tmp_path / name / "metadata.jsonl").write_text("\n".join(lines))
    for person in PEOPLE[:2]:
        (tmp_path / "photos" / person).mkdir(parents=True)
        Image.new("RGB", (20, 20), (0, 200, 0)).save(tmp_path / "photos" / person / "1.png")
    return tmp_path


def rate(folders, *options):
    evaluate.main(
        ["--rate", f"A={folders / 'a'}", str(folders / "b"), "--out", str(folders / "out")]
        + ["--references", str(folders / "photos"), *options]
    )


def data_of(page):
    """What the page's script holds."""
    text = re.search(r"const DATA = (.*?);\nconst stored", page, re.DOTALL)[1]
    return json.loads(text.replace("<\\/", "</"))


def test_pairs_are_of_everybody_and_on_both_sides(folders):
    (first, second), _ = open_together([str(folders / name) for name in "ab"], {}, [])
    pairs = draw_pairs(first, second, 9, seed=3)
    people = [pair.entry.person for pair in pairs]
    assert {person: people.count(person) for person in PEOPLE} == dict.fromkeys(PEOPLE, 3)
    for person in PEOPLE:
        lefts = [pair.first_is_left for pair in pairs if pair.entry.person == person]
        assert 0 < sum(lefts) < 3
    assert [p.name for p in draw_pairs(first, second, 9, seed=3)] == [p.name for p in pairs]
    assert [p.name for p in draw_pairs(first, second, 9, seed=4)] != [p.name for p in pairs]
    assert len(draw_pairs(first, second, 100, seed=3)) == 12


def test_the_page_is_blind_and_complete(folders, capsys):
    rate(folders, "--pairs", "6")
    said = capsys.readouterr().out
    assert "6 pairs of 3 people" in said and "no reference of zoë" in said
    page = (folders / "out" / "rating.html").read_text()
    assert str(folders) not in page and "http" not in page and page.count("</script>") == 1
    data, key = data_of(page), json.loads((folders / "out" / "rating_key.json").read_text())
    assert {pair["name"] for pair in data["pairs"]} == key["pairs"].keys()
    assert len(data["references"]) == 2 and data["page"] == key["page"]
    reds = {pair["left"] for pair in data["pairs"]} | {pair["right"] for pair in data["pairs"]}
    assert len(reds) == 2  # one colour each, with nothing that tells the pairs apart
    for pair in data["pairs"]:
        of = key["pairs"][pair["name"]]
        assert (pair["reference"] is None) == (of["person"] == PEOPLE[2])
        same_side = [
            p["left"]
            for p in data["pairs"]
            if key["pairs"][p["name"]]["first_is_left"] == of["first_is_left"]
        ]
        assert set(same_side) == {pair["left"]}
    with pytest.raises(SystemExit, match="the answers to a page need it; give another --out"):
        rate(folders)


def test_what_is_left_out_is_said(folders, capsys):
    """A damaged image, one that no line names, and seeds that nobody knows."""
    (folders / "a" / "0_0.png").write_bytes(b"damaged")
    (folders / "b" / "more.png").write_bytes((folders / "b" / "0_0.png").read_bytes())
    for name in "ab":
        file = folders / name / "metadata.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("\n".join(json.dumps({**line, "seed": None}) for line in lines))
    rate(folders)
    said = capsys.readouterr().out
    assert "left out: A/0_0.png: " in said and "left out: b/more.png: " in said
    assert "numbered" in said and "11 pairs" in said


def answer(folders, rater, choose, name="answers.json", **change):
    key = json.loads((folders / "out" / "rating_key.json").read_text())
    answers = {pair: choose(own) for pair, own in key["pairs"].items()}
    said = {"page": key["page"], "id": rater, "rater": "Ann", "answers": answers, **change}
    (folders / name).write_text(json.dumps(said))
    return str(folders / name)


def prefer_first(own):
    return {"prompt": "left" if own["first_is_left"] else "right"}


def test_answers_are_read_back_with_their_interval(folders, capsys):
    rate(folders)
    one = answer(folders, "one", prefer_first, "one.json")
    capsys.readouterr()
    rate(folders, "--answers", one)
    shown = capsys.readouterr().out
    # Three people of three always: no better known than three answers.
    assert "| follows the prompt | 100.0% | 29.2% to 100.0% | 12 | 0 | 0 |" in shown
    assert "1 rater; 12 pairs" in shown
    two = answer(folders, "two", lambda own: {**prefer_first(own), "likeness": "same"}, "two.json")
    rate(folders, "--answers", one, two)
    found = json.loads((folders / "out" / "rating.json").read_text())
    assert found["prompt"]["raters"] == 2 and found["prompt"]["agreement"] == 1.0
    assert (found["likeness"]["mean"], found["likeness"]["same"]) == (0.5, 12)


def test_shares_are_over_people():
    pairs = {
        f"{who}{i}": {"person": who, "first_is_left": i % 2 == 0}
        for who in "abcd"
        for i in range(6)
    }
    rng = np.random.default_rng(0)

    def choose(name):
        likes = rng.random() < (0.9 if name[0] in "ab" else 0.3)
        return "left" if likes == pairs[name]["first_is_left"] else "right"

    answers = {"me": {name: {"likeness": choose(name)} for name in pairs}}
    (found,) = preferences(answers, {"pairs": pairs})
    assert found.first + found.second == 24 and found.interval.mean == found.first / 24
    assert found.interval.low < 0.4 and found.interval.high > 0.8  # wide: four people


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"page": "x"}, "answers of another page"),
        ({"answers": {"x": {}}}, "'x' that the page does not ask for"),
        ({"answers": {}}, "no question is answered"),
        ({"answers": []}, "holds no answers"),
        ({"answers": {"x": 1}}, "holds no answers"),
    ],
)
def test_answers_of_something_else_are_refused(folders, change, named):
    rate(folders)
    file = answer(folders, "one", prefer_first, **change)
    with pytest.raises(SystemExit, match=named):
        rate(folders, "--answers", file)


def test_answers_need_their_key(folders):
    with pytest.raises(SystemExit, match="--out is the folder of the page"):
        rate(folders, "--answers", str(folders / "a" / "metadata.jsonl"))
