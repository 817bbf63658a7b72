"""Where a config file is looked for."""

import argparse
from pathlib import Path

import pytest

import configs
from persongen_jax.cli import parse_with_config
from persongen_jax.config import config_file, load_config

INSTALLED = Path(configs.__file__).parent


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_installed_config_is_found_from_any_folder():
    found = str(INSTALLED / "attributes" / "classifier.py")
    assert config_file("configs/attributes/classifier.py") == found
    assert config_file("configs/attributes/classifier.py:digits") == f"{found}:digits"
    assert load_config("configs/mini/photomaker.py", {"steps": 7}).steps == 7


def test_a_command_knows_the_config_by_the_name_that_was_given():
    words = ["--config", "configs/mini/photomaker.py", "--config.steps=7"]
    args, config = parse_with_config(argparse.ArgumentParser(), words, "configs/base.py")
    assert args.config == "configs/mini/photomaker.py"  # a run's default folder follows from it
    assert config.steps == 7 and config.size == 64


def test_a_file_of_the_working_directory_comes_first(elsewhere):
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "base.py").write_text("def get_config(): return {'steps': 1}\n")
    assert config_file("configs/base.py") == "configs/base.py"
    assert load_config("configs/base.py", {}) == {"steps": 1}


@pytest.mark.parametrize(
    "name", ["mine.py", "configs/no_such.py", "other/configs/base.py", "/a.py"]
)
def test_what_is_not_installed_stays_as_it_is(name):
    assert config_file(name) == name
