"""Terms are printed once, and not at all once they are accepted."""

import argparse

import pytest

from persongen_jax.weights import licences


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(licences, "_accepted", False)
    licences.say_terms.cache_clear()


def test_terms_are_said_once_for_each(capsys):
    for name in ("a.onnx", "a.onnx", "b.onnx"):
        licences.say_terms(f"faces are read by {name}", name, "face", "research only")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"faces are read by {name}; its licence: research only" for name in ("a.onnx", "b.onnx")
    ]


def test_accepted_terms_are_silent(capsys):
    parser = argparse.ArgumentParser()
    licences.add_terms_option(parser.add_argument)
    parser.parse_args([])
    licences.say("first")
    parser.parse_args(["--accept-terms"])
    licences.say("second")
    licences.say_terms("faces", "c.onnx", "face", "research only")
    assert capsys.readouterr().err == "first\n"
