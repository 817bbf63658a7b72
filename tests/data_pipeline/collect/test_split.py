"""Names of one person are merged, and nobody is in two sets."""

import numpy as np
import pytest

from data_pipeline.collect.refused import Refusals
from data_pipeline.collect.running.held import keep_held, read_held, remove_held
from data_pipeline.collect.running.stages import Chosen, of_all, of_name
from data_pipeline.collect.settings import Collect, SettingsError, Split, Verify
from data_pipeline.collect.split import (
    Held,
    held_out,
    merged_names,
    nearest_across,
    split_people,
    unmatched,
)
from tests.data_pipeline.collect.made import choice, people


def several(names, pictures=3, **changes):
    """Choices of people who look nothing alike."""
    return [
        choice(n * pictures + k, name, embeddings=np.eye(len(names))[[n]], **changes)
        for n, name in enumerate(names)
        for k in range(pictures)
    ]


NAMES = [f"person {n}" for n in range(12)]


def test_names_of_one_person_go_by_the_one_with_most_pictures():
    axis = np.eye(4)
    near = (axis[0] + 0.2 * axis[1]) / np.linalg.norm([1, 0.2])
    centres = {"Zoe": axis[0], "Zoë": near, "Bob": axis[2], "Zo": near}
    names, pairs = merged_names(centres, {"Zoe": 3, "Zoë": 9, "Bob": 5, "Zo": 1}, 0.75)
    assert names == {"Zoe": "Zoë", "Zoë": "Zoë", "Zo": "Zoë", "Bob": "Bob"}
    assert {pair[:2] for pair in pairs} == {("Zo", "Zoe"), ("Zo", "Zoë"), ("Zoe", "Zoë")}
    assert merged_names(centres, dict.fromkeys(centres, 1), None)[0]["Zo"] == "Zo"


def held_by(sets):
    return {name for name, kind in sets.items() if kind == "out_of_train"}


def test_everybody_is_in_one_set_which_the_seed_draws():
    settings = Split(out_of_train=3, in_train=2)
    sets = split_people(several(NAMES), settings)
    assert sorted(sets) == sorted(NAMES) and len(held_by(sets)) == 3
    assert split_people(several(NAMES), Split(seed=1, out_of_train=3)) != sets


def test_who_was_held_out_stays_so_when_people_are_added(tmp_path):
    settings = Split(out_of_train=3, in_train=2)

    def run(names):
        """Sets and the keys of in_train's pictures, with WORK's list read and written."""
        choices = several(names)
        before = read_held(tmp_path, settings)
        sets = split_people(choices, settings, before)
        orders = held_out(choices, sets, settings, 2, before)
        keep_held(tmp_path, Chosen(choices, [], sets, orders), settings)
        return sets, {c.identity for c in choices if c.order in orders}

    first, pictures = run(NAMES)
    more = [*NAMES, *(f"other {n}" for n in range(40))]
    # Drawn anew, somebody would move from held out to train.
    assert held_by(split_people(several(more), settings)) != held_by(first)
    then, again = run(more)
    assert held_by(then) == held_by(first) and again == pictures
    # Who is left out for a run is not forgotten; another takes the place meanwhile.
    absent = min(held_by(first))
    assert len(held_by(run([name for name in more if name != absent])[0])) == 3
    assert held_by(run(more)[0]) == held_by(first)
    # Those who are purged are not in the list any more.
    remove_held(tmp_path, lambda name: name == absent, set())
    assert absent not in (tmp_path / "held_out.json").read_text()


def test_a_held_out_person_who_goes_by_another_name_stays_so():
    before = Held(("person 5",)).renamed({"person 5": "Zoe"})
    sets = split_people(several([*NAMES[:5], "Zoe"]), Split(out_of_train=1), before)
    assert held_by(sets) == {"Zoe"}


def test_people_from_elsewhere_are_never_trained_on_unless_they_are_ours_too():
    own, foreign = several(NAMES[:4]), several(["x", "y"], source="web")
    both = [c.with_(order=100 + c.order, identity=NAMES[0]) for c in foreign[:3]]
    sets = split_people([*own, *foreign[3:], *both], Split(out_of_train=1, out_of_domain=("web",)))
    assert sets["y"] == "out_of_domain" and sets[NAMES[0]] in ("train", "out_of_train")


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "https://www.web.example/page/1"},
        {"url": "http://Web.example/1.jpg"},
        {"source": "https://a.example/", "origin": "web.example"},
    ],
)
def test_an_origin_is_a_host_or_a_column(changes):
    settings = Split(out_of_train=1, out_of_domain=("web.example", "nobody.example"))
    choices = [*several(NAMES[:3]), *several(["x"], **changes)]
    assert split_people(choices, settings)["x"] == "out_of_domain"
    assert unmatched([c.picture for c in choices], settings) == ["nobody.example"]


def test_the_surest_picture_is_held_out_and_the_rest_is_enough():
    choices = [c.with_(score=c.order / 100) for c in several(NAMES)]
    sets = split_people(choices, Split(out_of_train=2))
    held = held_out(choices, sets, Split(in_train=4), least=2)
    chosen = [c for c in choices if c.order in held]
    assert len({c.identity for c in chosen}) == 4 == len(chosen)
    assert all(c.order % 3 == 2 for c in chosen)
    assert held_out(choices, sets, Split(in_train=4), least=3) == set()


def test_holding_out_everybody_is_refused():
    with pytest.raises(SettingsError, match="hold out fewer"):
        split_people(several(NAMES[:3]), Split(out_of_train=3))


def test_who_looks_alike_across_sets():
    centres = {"a": np.eye(3)[0], "b": np.eye(3)[1], "c": np.array([0.6, 0.8, 0])}
    sets = {"a": "train", "b": "train", "c": "out_of_train"}
    assert nearest_across(centres, sets) == ("b", "c", 0.8) or nearest_across(centres, sets) == (
        *("c", "b", 0.8),
    )


def test_two_spellings_become_one_person_in_one_set_whatever_the_order():
    names = [*NAMES[:5], "Ann", "Anne"]
    rows = {name: people(n, own=8, strangers=0) for n, name in enumerate(names)}
    rows["Anne"], rows["Ann"] = rows["Ann"][:4], rows["Ann"][4:]
    choices = [
        choice(100 * n + k, name, embeddings=row[None])
        for n, name in enumerate(names)
        for k, row in enumerate(rows[name])
    ]
    settings = Collect(verify=Verify(), split=Split(in_train=1, out_of_train=2))

    def found(names):
        people = [
            of_name(n, [c for c in choices if c.picture.identity == n], settings, Refusals())
            for n in names
        ]
        return of_all(people, settings)

    one, other = found(names), found(names[::-1])
    assert one.names["Anne"] == one.names["Ann"] == "Ann"
    assert len({one.set_of(c) for c in one.kept if c.identity == "Ann"} - {"in_train"}) == 1
    assert [c.order for c in one.kept] == [c.order for c in other.kept] and one.sets == other.sets
    assert one.drops == other.drops == []
