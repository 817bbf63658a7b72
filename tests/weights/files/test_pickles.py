"""torch's files: what is read, and that nothing is executed."""

import pickle
import sys
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from persongen_jax.weights.errors import (
    BadPickle,
    KeyMismatch,
    MissingDependency,
    MissingFile,
    UnsafePickle,
)
from persongen_jax.weights.files.pickles import PickleFile
from persongen_jax.weights.files.source import subsource

torch = pytest.importorskip("torch")


class Evil:
    """Would create a file when unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_nested_dictionaries_in_order(tmp_path, zipped):
    path = tmp_path / "photomaker.bin"
    shared = torch.arange(12.0).reshape(3, 4)
    content = {
        "id_encoder": OrderedDict(
            z=torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).bfloat16(),
            a=shared.T,
            scalar=torch.tensor(3, dtype=torch.int64),
        ),
        "lora_weights": {"half": shared[1:].half(), "bool": torch.tensor([True, False])},
        "step": 7,
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with PickleFile(path) as file:
        assert file.keys() == [
            *("id_encoder.z", "id_encoder.a", "id_encoder.scalar"),
            *("lora_weights.half", "lora_weights.bool"),
        ]
        assert file.others == {"step": 7}
        part = subsource(file, "id_encoder.")
        z = part.read("z")
        assert part.info("z") == (np.dtype(ml_dtypes.bfloat16), (2, 3)) == (z.dtype, z.shape)
        np.testing.assert_array_equal(
            z.astype(np.float32), content["id_encoder"]["z"].float().numpy()
        )
        np.testing.assert_array_equal(part.read("a"), shared.numpy().T)
        assert part.read("scalar").shape == () and part.read("scalar") == 3
        np.testing.assert_array_equal(file.read("lora_weights.bool"), [True, False])
        np.testing.assert_array_equal(file.read("lora_weights.half"), shared[1:].numpy())
        with pytest.raises(KeyMismatch, match="photomaker.bin"):
            file.read("z")


def test_reading_twice_and_changing_the_array_changes_nothing(tmp_path):
    path = tmp_path / "a.bin"
    torch.save({"a": torch.zeros(3)}, path)
    with PickleFile(path) as file:
        array = file.read("a")
        array += 1
        np.testing.assert_array_equal(file.read("a"), 0)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_plain_pickle_is_not_run(tmp_path, protocol):
    marker, path = tmp_path / "marker", tmp_path / "evil.bin"
    path.write_bytes(pickle.dumps({"a": Evil(marker)}, protocol=protocol))
    with pytest.raises(BadPickle, match="evil.bin"):
        PickleFile(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists(), "the attack itself must work, or the test shows nothing"


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_torch_file_is_refused_by_name(tmp_path, zipped, monkeypatch):
    # torch's own switch for unsafe loading must not affect this reader.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker, path = tmp_path / "marker", tmp_path / "evil.ckpt"
    content = {"a": torch.zeros(2), "b": Evil(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafePickle, match="evil.ckpt.*Nothing was executed"):
        PickleFile(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_damaged_or_foreign(tmp_path, content):
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with pytest.raises(BadPickle, match="a.bin"):
        PickleFile(path)


def test_truncated(tmp_path):
    path = tmp_path / "a.bin"
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(BadPickle, match="a.bin"):
        PickleFile(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.zeros(2), "holds one Tensor"),
        ({1: torch.zeros(2)}, "not text"),
        ({"a": {"b": torch.zeros(1)}, "a.b": torch.zeros(1)}, "twice"),
        ({"step": 3}, "no named tensors"),
    ],
)
def test_not_a_state_dict(tmp_path, content, words):
    path = tmp_path / "a.pt"
    torch.save(content, path)
    with pytest.raises(BadPickle, match=words):
        PickleFile(path)


def test_sparse_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"s": torch.eye(3).to_sparse()}, path)
    with PickleFile(path) as file, pytest.raises(BadPickle, match="'s'.*sparse"):
        file.info("s")


def test_absent_or_old_torch(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    with pytest.raises(MissingFile):
        PickleFile(path)
    torch.save({"a": torch.zeros(1)}, path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "2.5.1+cpu")
        with pytest.raises(MissingDependency, match=r"2\.5\.1.*2\.6"):
            PickleFile(path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependency, match=r"persongen_jax\[convert\]"):
        PickleFile(path)
