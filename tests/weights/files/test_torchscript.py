"""TorchScript archives: their tensors as torch reads them, and nothing executed."""

import pickle
import zipfile

import numpy as np
import pytest
import torch

from persongen_jax.weights.errors import BadPickle, KeyMismatch, UnsafePickle
from persongen_jax.weights.files.directory import open_file
from persongen_jax.weights.files.torchscript import TorchScriptFile
from tests.helpers.torchscript import module_of

STATE = {
    "conv.0.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
    "conv.0.narrow": torch.arange(6, dtype=torch.float16).reshape(2, 3).T,  # not contiguous
    "block.a.brain": torch.linspace(0, 1, 5).bfloat16()[1:4],  # a part of its storage
    "number": torch.tensor(224),
    "empty": torch.zeros(0, 3),
    "flags": torch.tensor([True, False]),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "model.pt"
    torch.jit.save(torch.jit.script(module_of(STATE)), path)
    return path


def test_the_tensors_are_torchs(path):
    with open_file(path) as file:
        assert isinstance(file, TorchScriptFile) and set(file.keys()) == set(STATE)
        for key, wanted in STATE.items():
            found = file.read(key)
            assert file.info(key) == (found.dtype, found.shape)
            assert str(found.dtype) == str(wanted.dtype).removeprefix("torch.")
            assert np.array_equal(found.astype(np.float64), wanted.double().numpy())
        with pytest.raises(KeyMismatch, match="none"):
            file.read("none")


def archive_with(path, tree: bytes, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", tree)
        archive.writestr("a/constants.pkl", b"")
    return path


class Runs:
    def __init__(self, function, *arguments):
        self.given = function, arguments

    def __reduce__(self):
        return self.given


@pytest.mark.parametrize("function", [eval, getattr, np.load, torch.load, pickle.loads])
def test_what_runs_code_is_refused(function, tmp_path):
    tree = pickle.dumps(Runs(function, "1"), 2)
    with pytest.raises(UnsafePickle, match="Nothing was executed"):
        open_file(archive_with(tmp_path / "a.pt", tree))


def test_damaged_ones_are_named(path, tmp_path):
    for tree in (
        b"",
        b"\x80\x02",
        pickle.dumps([1]),
        pickle.dumps([1])[:-1],
        b"\x80\x02}q\x00h\x07.",
    ):
        with pytest.raises(BadPickle, match=r"a\.pt: cannot be read as TorchScript"):
            open_file(archive_with(tmp_path / "a.pt", tree))
    packed = archive_with(tmp_path / "a.pt", pickle.dumps([1]), zipfile.ZIP_DEFLATED)
    with pytest.raises(BadPickle, match="is compressed"):
        open_file(packed)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "b.pt", "w") as cut:
        for name in whole.namelist():
            data = whole.read(name)
            cut.writestr(name, data[:4] if "/data/" in name else data)
    with (
        open_file(tmp_path / "b.pt") as file,
        pytest.raises(BadPickle, match="outside its storage"),
    ):
        file.read("conv.0.weight")
