"""Terms are printed once, and not at all once they are accepted."""

import argparse
from types import SimpleNamespace

import jax
import pytest
from flax import nnx

from persongen_jax.methods.start import Origin, say_origin
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


def test_a_method_says_the_terms_of_the_file_that_it_starts_from(capsys):
    model = SimpleNamespace(unet=nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
    origin = Origin("a run", "faceid.bin", {})
    say_origin(model, origin._replace(file=""), "ip-adapter-faceid-plus")

    def abstract():
        shapes = SimpleNamespace(unet=nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
        say_origin(shapes, origin, "ip-adapter-faceid-plus")

    jax.eval_shape(abstract)
    assert capsys.readouterr().err == ""
    say_origin(model, origin, "ip-adapter-faceid-plus")
    assert capsys.readouterr().err == (
        "the method's weights are faceid.bin; its licence: not stated in the file; "
        "h94/IP-Adapter-FaceID's are for non-commercial research only\n"
    )


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("---\ntags: x\nlicense: mit\n---\n# A", "mit (so says README.md)"),
        ("---\ntags: x\n---\nlicense: see below", "not stated in the file"),
        ("---\nlicense:\ntags: x\n---", "not stated in the file"),
    ],
)
def test_a_card_speaks_in_its_front_matter_alone(card, said, tmp_path):
    (tmp_path / "README.md").write_text(card)
    assert licences.licence(tmp_path / "a.bin", "unknown") == said
