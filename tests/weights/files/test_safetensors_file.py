"""safetensors: round trips, both ways with the public library, and everything malformed."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from persongen_jax.weights.errors import (
    BadEntry,
    BadHeader,
    KeyMismatch,
    MissingFile,
    TruncatedFile,
    WeightsError,
)
from persongen_jax.weights.files.safetensors_file import DTYPES, TensorFile, write_safetensors


def entries_of(tensors):
    return [(k, v.shape, v.dtype, lambda v=v: v) for k, v in tensors.items()]


def test_every_dtype_round_trips_and_the_public_library_reads_it(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {}
    for name, dtype in DTYPES.items():
        raw = rng.integers(0, 2 if name == "BOOL" else 256, (3, 5 * dtype.itemsize), np.uint8)
        tensors[name] = raw.view(dtype)
    tensors["scalar"] = np.array(2.5, np.float32)
    tensors["empty"] = np.zeros((0, 7), np.float16)
    tensors["ключ"] = np.arange(3, dtype=np.int64)
    tensors["strided"] = np.arange(12, dtype=np.float32).reshape(3, 4).T
    path = tmp_path / "a.safetensors"
    write_safetensors(path, entries_of(tensors), {"format": "pt"})

    with TensorFile(path) as file:
        assert set(file.keys()) == set(tensors) and file.metadata == {"format": "pt"}
        for key, wanted in tensors.items():
            got = file.read(key)
            assert file.info(key) == (wanted.dtype, wanted.shape) == (got.dtype, got.shape)
            assert got.tobytes() == np.ascontiguousarray(wanted).tobytes()
    with safe_open(path, "np") as file:
        assert set(file.keys()) == set(tensors) and file.metadata() == {"format": "pt"}
        np.testing.assert_array_equal(file.get_tensor("strided"), tensors["strided"])
        assert file.get_tensor("scalar") == 2.5


def test_reads_what_the_public_libraries_write(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    path = tmp_path / "np.safetensors"
    save_file({"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, path)
    with TensorFile(path) as file:
        np.testing.assert_array_equal(file.read("a"), [[0, 1, 2], [3, 4, 5]])
    path = tmp_path / "pt.safetensors"
    value = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_torch({"b": value, "c": torch.tensor(1.0)}, path, metadata={"x": "y"})
    with TensorFile(path) as file:
        assert file.read("b").dtype == ml_dtypes.bfloat16 and file.metadata == {"x": "y"}
        np.testing.assert_array_equal(file.read("b").astype(np.float32), value.float().numpy())


def test_data_are_aligned_whatever_the_order(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"odd": np.zeros(3, np.int8), "wide": np.zeros(2, np.float64)}
    write_safetensors(path, entries_of(tensors))
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    begin = json.loads(raw[8 : 8 + length])["wide"]["data_offsets"][0]
    assert (8 + length + begin) % 8 == 0


def build(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def one(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


def two(first, second):
    return {
        key: {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        for key, (begin, end) in {"a": first, "b": second}.items()
    }


MALFORMED = {
    "empty file": (b"", TruncatedFile, "0 bytes"),
    "no whole length": (b"\x01\x02", TruncatedFile, "2 bytes"),
    "header longer than the file": (build(one(), length=5000), TruncatedFile, "5000"),
    "huge header": (build(one(), length=2**62), BadHeader, "allowed"),
    "just over the limit": (build(one(), length=100_000_001), BadHeader, "allowed"),
    "header shorter than it is": (build(one(), b"\0" * 8, length=10), BadHeader, "JSON"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", BadHeader, "git lfs pull"),
    "invalid utf-8": (build(b'{"\xff": 1}'), BadHeader, "JSON"),
    "invalid json": (build(b"{nope}"), BadHeader, "JSON"),
    "deep json": (build(b"[" * 200_000), BadHeader, "JSON"),
    "endless number": (build(b'{"a":' + b"9" * 5000 + b"}"), BadHeader, "JSON"),
    "a list": (build(b"[1]"), BadHeader, "object"),
    "twice": (build(b'{"a": 1, "a": 2}'), BadHeader, "'a' twice"),
    "lone surrogate": (build(b'{"\\ud800": 1}'), BadHeader, "hex escape"),
    "same tensor twice": (
        build(f"{json.dumps(one())[:-1]}, {json.dumps(one('I32'))[1:]}".encode(), b"\0" * 8),
        BadHeader,
        "'a' twice",
    ),
    "a dtype not read here": (
        build({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, b"\0" * 2),
        BadHeader,
        "'a' has dtype F4",
    ),
    "entry a list": (build({"a": ["F32", [1], [0, 4]]}, b"\0" * 4), BadHeader, "dtype"),
    "dtype an object": (build(one({"F32": None}), b"\0" * 8), BadHeader, "dtype"),
    "metadata numbers": (build({"__metadata__": {"a": 1}}), BadHeader, "expected a string"),
    "entry no object": (build({"a": 3}), BadHeader, "`3`, expected"),
    "entry lacks offsets": (
        build({"a": {"dtype": "F32", "shape": []}}),
        BadHeader,
        "missing field",
    ),
    "unknown dtype": (build(one("F4")), BadHeader, "data type"),
    "dtype of another type": (build(one(["F32"])), BadHeader, "dtype"),
    "negative size": (build(one(shape=(-2,))), BadHeader, "`-2`"),
    "bool size": (build(one(shape=(True,))), BadHeader, "`true`"),
    "float size": (build(one(shape=(2.0,))), BadHeader, "`2.0`"),
    "overflow": (build(one(shape=(2**62, 2**62))), BadHeader, "overflow"),
    "overflow beside zero": (
        build(one(shape=(0, 2**62, 2**62), offsets=(0, 0))),
        BadHeader,
        "too large",
    ),
    "too many dims": (build(one(shape=(1,) * 65, offsets=(0, 4)), b"\0" * 4), BadHeader, "large"),
    "offsets backwards": (
        build(one(offsets=(8, 0)), b"\0" * 8),
        BadHeader,
        "offset for tensor `a`",
    ),
    "offsets negative": (build(one(offsets=(-8, 0)), b"\0" * 8), BadHeader, "`-8`"),
    "offsets float": (build(one(offsets=(0, 8.0)), b"\0" * 8), BadHeader, "`8.0`"),
    "size unlike shape": (
        build(one(offsets=(0, 12)), b"\0" * 12),
        BadHeader,
        "shape, data type",
    ),
    "beyond the end": (build(one(), b"\0" * 7), TruncatedFile, "7 bytes"),
    "trailing bytes": (build(one(), b"\0" * 9), BadHeader, "1 bytes follow"),
    "overlap": (build(two((0, 4), (2, 6)), b"\0" * 6), BadHeader, "offset for tensor `b`"),
    "same bytes": (build(two((0, 4), (0, 4)), b"\0" * 4), BadHeader, "offset for tensor"),
    "hole": (build(two((0, 4), (5, 6)), b"\0" * 6), BadHeader, "offset for tensor `b`"),
    "hole in front": (build(two((1, 4), (4, 6)), b"\0" * 6), BadHeader, "tensor `a`"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(tmp_path, case):
    content, error, words = MALFORMED[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(error, match=words) as caught:
        TensorFile(path)
    assert str(path) in str(caught.value)
    assert type(caught.value) is error


def test_random_damage_never_escapes_as_another_error(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, entries_of({"a": np.arange(4.0), "b": np.zeros((2, 2), np.int8)}))
    sound = path.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(300):
        raw = bytearray(sound)
        raw[rng.integers(len(raw))] = rng.integers(256)
        path.write_bytes(raw[: rng.integers(len(raw) + 1)] if rng.random() < 0.3 else raw)
        try:
            with TensorFile(path) as file:
                for key in file.keys():
                    file.read(key)
        except WeightsError:
            pass


def test_missing_file_folder_and_key(tmp_path):
    with pytest.raises(MissingFile, match="no such file"):
        TensorFile(tmp_path / "none.safetensors")
    with pytest.raises(MissingFile, match="folder"):
        TensorFile(tmp_path)
    path = tmp_path / "a.safetensors"
    write_safetensors(path, entries_of({"a": np.zeros(1)}))
    with TensorFile(path) as file, pytest.raises(KeyMismatch, match="a.safetensors"):
        file.read("b")


def test_a_file_cut_after_opening_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, entries_of({"a": np.zeros(100)}))
    with TensorFile(path) as file:
        with open(path, "r+b") as other:
            other.truncate(300)
        with pytest.raises(TruncatedFile, match="'a'"):
            file.read("a")


def test_many_short_reads_fill_the_array(tmp_path):
    path = tmp_path / "a.safetensors"
    wanted = np.arange(1000, dtype=np.int32)
    write_safetensors(path, entries_of({"a": wanted}))
    with TensorFile(path) as file:
        inner = file._file

        class Slow:
            def seek(self, *a):
                return inner.seek(*a)

            def readinto(self, view):
                return inner.readinto(view[:7])

            def close(self):
                inner.close()

        file._file = Slow()
        np.testing.assert_array_equal(file.read("a"), wanted)


def test_close_closes(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, entries_of({"a": np.zeros(1)}))
    with TensorFile(path) as file:
        pass
    with pytest.raises(ValueError):
        file.read("a")
    file.close()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((2, 3), np.float32), "announced"),
        (np.zeros((3, 2), np.float64), "announced"),
        (RuntimeError("the disk of the caller"), "caller"),
    ],
)
def test_a_broken_promise_leaves_the_old_file_and_no_other(tmp_path, given, words):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")

    def make():
        if isinstance(given, Exception):
            raise given
        return given

    with pytest.raises((BadEntry, RuntimeError), match=words):
        write_safetensors(path, [("a", (3, 2), np.float32, make)])
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "a.safetensors"
    entry = ("a", (1,), np.float32, lambda: np.zeros(1, np.float32))
    for entries, metadata in [
        ([entry, entry], None),
        ([("__metadata__", *entry[1:])], None),
        ([("a", (1,), np.complex128, entry[3])], None),
        ([entry], {"step": 3}),
    ]:
        with pytest.raises(BadEntry):
            write_safetensors(path, entries, metadata)
    assert not list(tmp_path.iterdir())


def test_one_tensor_at_a_time(tmp_path):
    tracemalloc = pytest.importorskip("tracemalloc")
    path = tmp_path / "a.safetensors"
    size = 1 << 20
    entries = [
        (f"t{i}", (size,), np.uint8, lambda i=i: np.full(size, i, np.uint8)) for i in range(12)
    ]
    tracemalloc.start()
    write_safetensors(path, entries)
    with TensorFile(path) as file:
        for i in range(12):
            assert (file.read(f"t{i}") == i).all()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * size


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
def test_read_pages_do_not_stay_resident(tmp_path):
    # A memory map would keep the whole file resident in addition to the arrays.
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    path, size = tmp_path / "a.safetensors", 4 << 20
    write_safetensors(
        path, [(f"t{i}", (size,), np.uint8, lambda: np.ones(size, np.uint8)) for i in range(16)]
    )
    with TensorFile(path) as file:
        before = resident()
        for key in file.keys():
            file.read(key).sum()
        assert resident() - before < 4 * size
