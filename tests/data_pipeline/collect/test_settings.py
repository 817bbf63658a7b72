"""Settings of a file, changed by --set; what is refused, and how."""

from pathlib import Path

import pytest

from data_pipeline.collect.looking.scores import ScoreError, open_score, terms
from data_pipeline.collect.settings import Limit, SettingsError, load_settings, to_json

CONFIGS = Path(__file__).parents[3] / "configs" / "collect"
THESIS = CONFIGS / "thesis.py"


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("[!_]*.py")), ids=lambda file: file.stem)
def test_configs_open(file):
    assert load_settings(file).name


def test_the_thesis_values():
    settings = load_settings(THESIS)
    assert (settings.filter.min_side, settings.filter.min_face) == (512, 256)
    assert settings.crop.min_face_share == 0.1 and settings.verify.paper == 8
    assert (settings.split.in_train, settings.split.out_of_train) == (10, 10)


def test_changes():
    changes = ["filter.min_face=100", "filter.max_yaw=0.3", "verify.rule=paper", "name='A B'"]
    changes += ["filter.min_side=None", "crop.min_face_share=0.2", "split.out_of_domain=('x',)"]
    settings = load_settings(THESIS, changes)
    assert (settings.filter.min_face, settings.filter.max_yaw) == (100, 0.3)
    assert settings.verify.rule == "paper" and settings.name == "A B"
    assert settings.filter.min_side is None and settings.split.out_of_domain == ("x",)


def test_limits_as_pairs():
    changes = ["measure.scores=('a.b:nsfw',)", "filter.limits=(('nsfw', 0.5),)"]
    settings = load_settings(THESIS, [*changes, "rows=faces.csv", "download.contact=me@a.org"])
    assert settings.filter.limits == (Limit("nsfw", 0.5),)
    assert settings.download.contact == "me@a.org" and "me@a.org" not in str(to_json(settings))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("filter.min_sides=3", "'min_sides' is unknown; known: min_side,"),
        ("filter", "key=value is needed"),
        ("filter=3", "a stage; name one of its keys"),
        ("name.x=3", "has no parts"),
        ("output.shards=maybe", "a bool is needed"),
        ("filter.min_side=large", "a int is needed"),
        ("verify.rule=best", "use one of median"),
        ("caption.batch=0", "more than 0"),
        ("crop.min_face_share=1.5", "between 0 and 1"),
        ("split.out_of_train=-1", "out_of_train=-1: 0 or more"),
        ("filter.limits=(('nsfw',0.5),)", "'nsfw' is none of measure.scores"),
        ("filter.limits=('nsfw',0.5)", "pairs are needed, such as"),
        ("filter.limits=(('nsfw',),)", "pairs are needed, such as"),
        ("download.threads=0", "threads=0: at least 1"),
    ],
)
def test_what_is_refused(change, why):
    with pytest.raises(ValueError, match=why):
        load_settings(THESIS, [change])


def test_files_that_are_none(tmp_path):
    with pytest.raises(SettingsError, match="no such file"):
        load_settings(tmp_path / "none.py")
    (tmp_path / "other.py").write_text("def get_config():\n    return 3\n")
    with pytest.raises(SettingsError, match="has to return a Collect"):
        load_settings(tmp_path / "other.py")


def half(image, faces):
    return 0.5


def test_a_plug_in_has_to_say_its_error():
    name = f"{__name__}:half"
    with pytest.raises(ScoreError, match="how wrong it is"):
        open_score(name)
    half.error = "wrong half of the time"
    assert open_score(name)(None, ()) == 0.5
    assert terms([name]) == ["half: wrong half of the time"]
    with pytest.raises(ScoreError, match="has no 'quarter'"):
        open_score(f"{__name__}:quarter")
