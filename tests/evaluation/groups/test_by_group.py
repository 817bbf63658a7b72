"""Figures by group of people: by hand, over seeds, in every report, and what is not known."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from data_pipeline.drawing.people import identity_of
from data_pipeline.people import write_people
from data_pipeline.records.groups import join_groups, read_group
from data_pipeline.records.manifest import ManifestError, read_manifest
from data_pipeline.records.sources import open_records
from persongen_jax import evaluate
from persongen_jax.evaluation.comparison import compare_runs
from persongen_jax.evaluation.groups.by_group import (
    few_line,
    groups_of,
    measures_by_group,
    missing_line,
    tables_by_group,
    write_groups,
)
from persongen_jax.metrics.base import Owner
from persongen_jax.metrics.intervals.people import over_people
from persongen_jax.metrics.measures import measure

DESCRIBED = {"title": "grey", "form": "{:.2f}", "over": "images", "plotted": True, "judge": ""}
GREY = "tests.evaluation.test_of_folders:Grey"


def owner(name, **group):
    return Owner(name, list, lambda limit=None: [], group)


def row(values, people, groups, step=1, bounds=None):
    found = measure(np.array(values, float), np.array(people), bounds)
    metrics = {"grey": {**found, **DESCRIBED, "bounds": bounds}}
    return {"step": step, "set": "in_train", "method": "m", "metrics": metrics, "groups": groups}


def test_groups_of_owners():
    owners = [owner("a", age="old", skin="dark"), owner("b", age="child"), owner("c")]
    assert groups_of(owners) == {
        "age": {"child": ["b"], "old": ["a"], "not known": ["c"]},
        "skin": {"dark": ["a"], "not known": ["b", "c"]},
    }
    assert groups_of([owner("a")]) == {}


def test_a_groups_interval_is_over_its_own_people():
    people = ["a", "a", "b", "b", "c", "c", "c"]
    values = [0.1, 0.3, 0.5, 0.9, 0.2, 0.2, 0.6]
    groups = {"age": {"old": ["a", "b"], "child": ["c"], "not known": ["d"]}}
    found = measures_by_group([row(values, people, groups, bounds=(0.0, 1.0))])["age"]
    wanted = over_people(np.array(values[:4]), np.array(people[:4]), (0.0, 1.0))
    old = found["old"]["grey"]
    assert (old["mean"], old["low"], old["high"]) == pytest.approx(
        (wanted.mean, wanted.low, wanted.high)
    )
    assert (old["n"], old["units"]) == (4, 2)
    child = found["child"]["grey"]
    assert child["mean"] == pytest.approx(1 / 3) and child["low"] is None
    assert "one person" in child["reason"] and child["units"] == 1
    assert found["not known"]["grey"]["n"] == 0
    text = tables_by_group([("", [row(values, people, groups)])])
    assert "| age: old | 2 | 4 | 0.45 (" in text and "| age: child | 1 | 3 | 0.33 |" in text
    assert "Fewer than 10 people: age: old (2), age: child (1), age: not known (0)." in text


def test_enough_people_are_not_said_to_be_few():
    people = [f"p{i}" for i in range(12)]
    rows = [row(np.arange(12), people, {"skin": {"dark": people[:10], "light": people[10:]}})]
    assert few_line([("m", rows)]).startswith("Fewer than 10 people: m skin: light (2).")
    assert tables_by_group([("", [row([1, 2], ["a", "b"], {})])]) == ""


def test_images_that_were_not_measured_are_split_by_group(tmp_path):
    """By hand: two of a's and one of c's, over two seeds; in the tables and in groups.csv."""
    groups = {"age": {"old": ["a", "b"], "child": ["c", "d"], "not known": ["e"]}}
    each = row([1, 2, 3], ["a", "b", "d"], groups)
    each["metrics"]["grey"] |= {"missing": 3, "missing_people": {"a": 2, "c": 1}}
    said = "Not measured: grey 2 of 4 images (age: old); grey 1 of 2 images (age: child)."
    assert missing_line([("", [each])]) == said and said in tables_by_group([("", [each])])
    entries = [("m", [each, {**each, "step": 2}])]
    assert "grey 4 of 8 images (m age: old); grey 2 of 4" in write_groups(entries, tmp_path)
    with (tmp_path / "groups.csv").open(newline="") as file:
        rows = [(r["group"], r["n"], r["missing"]) for r in csv.DictReader(file)]
    assert rows == [("old", "4", "4"), ("child", "2", "2"), ("not known", "0", "0")]


def test_seeds_are_joined(tmp_path, capsys):
    groups = {"age": {"old": ["a", "b"], "child": ["c", "d"]}}
    runs = [row([1, 2, 3, 5], list("abcd"), groups), row([2, 3, 4, 7], list("abcd"), groups)]
    for i, each in enumerate(runs):
        (tmp_path / f"{i}.jsonl").write_text(json.dumps(each) + "\n")
    compare_runs([f"m={tmp_path / f'{i}.jsonl'}" for i in range(2)], tmp_path / "out")
    said = capsys.readouterr().out
    assert "| m in-train | age: old | 2 | 4 | 2.00 (" in said
    assert (
        said.split("written")[0].strip() == (tmp_path / "out" / "comparison.md").read_text().strip()
    )
    with (tmp_path / "out" / "groups.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["group"], r["value"], r["n"], r["few"]) for r in rows] == [
        ("old", "2.0", "4", "True"),
        ("child", "4.75", "4", "True"),
    ]


def test_drawn_people_have_groups(tmp_path):
    records, _ = open_records("people:in_train?identities=6&pictures=2&size=16")
    for record in records:
        number = int(record.identity.rsplit("_", 1)[1])
        skin = float(identity_of("in_train", number).skin[0])
        wanted = "light" if skin < 2 else "medium" if skin < 3.5 else "dark"
        assert record.group["skin"] == wanted and set(record.group) == {"skin", "hair", "age"}
    written = write_people(tmp_path, identities=3, pictures=2, split="in_train", size=16)
    assert [r.group for r in read_manifest(tmp_path)] == [r.group for r in written]
    assert written[0].group == records[0].group


def test_what_a_group_may_be(tmp_path):
    assert read_group(None) is None and read_group("A") == {"group": "A"}
    assert read_group({"tone": 7, "age": "old"}) == {"tone": "7", "age": "old"}
    for value in ("", [], {}, {"age": ""}, {"age": 0.5}, True, {"": "x"}):
        with pytest.raises(ValueError, match="a text or"):
            read_group(value)
    assert join_groups([{"age": "old"}, None, {"skin": "dark"}], "ann") == {
        "age": "old",
        "skin": "dark",
    }
    with pytest.raises(ValueError, match="ann is in two groups of age, 'old' and 'child'"):
        join_groups([{"age": "old"}, {"age": "child"}], "ann")
    write_people(tmp_path, identities=2, pictures=2, split="in_train", size=16)
    path = tmp_path / "manifest.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["group"] = [1]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ManifestError, match=r"line 2: group is \[1\]; a text or"):
        read_manifest(tmp_path)


def score(folder, out, *words):
    evaluate.main(
        ["--images", *map(str, folder), "--metrics", GREY, "--out", str(out), *map(str, words)]
        + ["--cache", str(out / "cache")]
    )
    return json.loads((out / "scores.json").read_text())


def test_groups_of_a_folder(tmp_path, capsys):
    """Of metadata.jsonl and of the references' manifest; contradictions are refused."""
    made, lines = tmp_path / "made", []
    made.mkdir()
    records = write_people(tmp_path / "people", identities=3, pictures=2, split="in_train", size=16)
    names = [records[2 * i].identity for i in range(3)]
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 10 * (i + 1), np.uint8)).save(made / f"{i}.png")
        lines.append({"file_name": f"{i}.png", "person": names[i // 2], "group": "A"})
    lines[4]["group"] = lines[5]["group"] = {"group": "B"}

    def write():
        (made / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    write()
    found = score([made], tmp_path / "out", "--references", tmp_path / "people")
    rows = {(r["grouped_by"], r["group"]): r for r in found["groups"]}
    assert rows["group", "A"]["value"] == 25 and rows["group", "A"]["people"] == 2
    assert rows["group", "B"]["value"] == 55 and rows["group", "B"]["low"] is None
    assert {name for name, _ in rows} == {"group", "skin", "hair", "age"}
    assert sum(r["n"] for (name, _), r in rows.items() if name == "age") == 6
    text = capsys.readouterr().out
    assert "| group: A | 2 | 4 | 25.0 (" in text
    assert "group: A (2), group: B (1). Their intervals are not checked" in text
    assert "group: B" in (tmp_path / "out" / "scores.html").read_text()
    both = score([made, f"again={made}"], tmp_path / "two")
    assert both["folders"]["again"]["groups"] == both["folders"]["made"]["groups"]
    assert "| again | group: A | 2 |" in (tmp_path / "two" / "scores.md").read_text()
    lines[1]["group"] = "B"
    write()
    with pytest.raises(SystemExit, match=f"{names[0]} is in two groups of group, 'A' and 'B'"):
        score([made], tmp_path / "out")
    lines[1]["group"] = 0.5
    write()
    with pytest.raises(SystemExit, match=r"metadata.jsonl line 2: group is 0.5; a text or"):
        score([made], tmp_path / "out")
