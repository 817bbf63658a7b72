"""Terms are printed once, and not at all once they are accepted."""

import argparse

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from persongen_jax.methods.start import Origin, load_remaining
from persongen_jax.weights import licences


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(licences, "_accepted", False)
    licences.say_terms.cache_clear()
    licences.say_terms_of.cache_clear()


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


def test_every_method_that_starts_from_a_file_says_its_terms(tmp_path, capsys):
    """FaceID's, told by its keys, in training, evaluation and generating alike."""
    names = ("image_proj.proj.0.weight", "image_proj.proj.2.weight", "image_proj.norm.weight")
    names += ("ip_adapter.1.to_k_ip.weight", "ip_adapter.1.to_v_ip.weight")
    file = tmp_path / "faceid.safetensors"
    save_file({name: np.zeros((2, 2), np.float32) for name in names}, file)
    model = nnx.Dict(unet=nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
    for _ in range(2):
        load_remaining(model, Origin(str(file), str(file), {}))
    load_remaining(model, Origin("", "", {}))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"weights are read from {file}; its licence: not stated in the file")
    assert "IP-Adapter-FaceID's are for non-commercial research only" in line


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
