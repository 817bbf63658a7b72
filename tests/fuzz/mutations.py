"""Ways to damage a file. Each takes its bytes and a Generator, and returns other bytes."""

import json
import struct

import numpy as np

DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "U8", "BOOL", "X9", "")
ODD = (None, "", "x", -1, 0, 1.5, 2**62, [], {}, [None], True, "nan", float("nan"), [[1]], "\u202e")
LETTERS = "._-/\\ \0é\ufeffabcxyz019"


# ---- any bytes -----------------------------------------------------------------------------------


def truncated(data, rng):
    return data[: rng.integers(len(data) + 1)]


def flipped(data, rng):
    """Change a few bytes, most of them near the beginning, where headers are."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        span = min(len(out), 256) if rng.random() < 0.6 else len(out)
        if span:
            out[rng.integers(span)] = rng.integers(256)
    return bytes(out)


def spliced(data, rng):
    """Remove or double a piece, or replace it by noise."""
    a, b = sorted(rng.integers(0, len(data) + 1, 2))
    b = min(b, a + 64)
    piece = (b"", 2 * data[a:b], rng.bytes(int(b - a)))[rng.integers(3)]
    return data[:a] + piece + data[b:]


def emptied(data, rng):
    return (b"", b"\0" * 16, b"\xff" * 64, b"{}", b"\n\n", rng.bytes(200))[rng.integers(6)]


def recoded(data, rng):
    """Use another encoding for text, or another file's beginning."""
    text = data.decode("utf-8", "replace")
    codes = ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1")
    return text.encode(codes[rng.integers(len(codes))], "replace")


ANY = (truncated, flipped, spliced, emptied)


# ---- safetensors ---------------------------------------------------------------------------------


def _split(data):
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _join(header, body):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def header_changed(data, rng):
    """Change the name, dtype, shape or offset of one entry of the header."""
    header, body = _split(data)
    names = [name for name in header if name != "__metadata__"]
    name = names[rng.integers(len(names))]
    entry = header[name]
    kind = rng.integers(8)
    if kind == 0:
        del header[name]
    elif kind == 1:
        header[_renamed(name, rng)] = header.pop(name)
    elif kind == 2:
        entry["dtype"] = DTYPES[rng.integers(len(DTYPES))]
    elif kind == 3:
        entry["shape"] = _shape(entry["shape"], rng)
    elif kind == 4:
        start, end = entry["data_offsets"]
        step = int(rng.integers(-64, 65))
        moved = ([start + step, end + step], [end, start], [start], [start, 2**63], [-4, end])
        entry["data_offsets"] = moved[rng.integers(5)]
    elif kind == 5:
        key = ("dtype", "shape", "data_offsets")[rng.integers(3)]
        entry[key] = ODD[rng.integers(len(ODD))]
    elif kind == 6:
        del entry[("dtype", "shape", "data_offsets")[rng.integers(3)]]
    else:
        header["__metadata__"] = ({"a": 1}, [], "x", {"format": None}, {"k": {"l": []}})[
            rng.integers(5)
        ]
    return _join(header, body)


def reshaped(data, rng):
    """A tensor of another shape with the matching number of bytes: a well-formed file."""
    header, body = _split(data)
    names = [name for name in header if name != "__metadata__" and header[name]["shape"]]
    entry = header[names[rng.integers(len(names))]]
    shape = list(entry["shape"])
    axis = rng.integers(len(shape))
    shape[axis] = int(rng.integers(0, 2 * shape[axis] + 2))
    each = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}.get(entry["dtype"], 1)
    entry["shape"] = shape
    entry["data_offsets"] = [len(body), len(body) + each * int(np.prod(shape))]
    return _join(header, body + bytes(entry["data_offsets"][1] - len(body)))


def length_changed(data, rng):
    lengths = (0, 1, 2**31, 2**63, 2**64 - 1, int(rng.integers(0, len(data) + 100)))
    return struct.pack("<Q", lengths[rng.integers(6)]) + data[8:]


def _renamed(name, rng):
    place, letter = rng.integers(len(name) + 1), LETTERS[rng.integers(len(LETTERS))]
    ways = (
        name[:place] + letter + name[place:],
        name[:place] + name[place + 1 :],
        "model." + name,
        name.replace(".", "_"),
        name.upper(),
        name + ".weight",
    )
    return ways[rng.integers(6)]


def _shape(shape, rng):
    ways = ([], [0, *shape], [-1, *shape[1:]], [2**40, 2**40], [*shape, 1], [1.5], shape[::-1])
    return ways[rng.integers(len(ways))]


SAFETENSORS = (*ANY, header_changed, header_changed, header_changed, reshaped, length_changed)


# ---- JSON, tables, lines -------------------------------------------------------------------------


def json_changed(data, rng):
    """Remove or change one value of a JSON file, or of a line of one."""
    lines = data.decode().split("\n")
    many = len([line for line in lines if line.strip()]) > 1 and _is_json(lines[0])
    at = rng.integers(max(1, len(lines) - 1)) if many else None
    content = json.loads(lines[at] if many else data)
    content = _changed(content, rng)
    text = json.dumps(content, allow_nan=True)
    if many:
        lines[at] = text
        text = "\n".join(lines)
    return text.encode()


def _is_json(text):
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _changed(value, rng):
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = list(value)[rng.integers(len(value))]
        way = rng.random()
        if way < 0.2:
            return {k: v for k, v in value.items() if k != key}
        if way < 0.3:
            return {(f"{k}x" if k == key else k): v for k, v in value.items()}
        return {**value, key: _changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.6:
        at = rng.integers(len(value))
        return [*value[:at], _changed(value[at], rng), *value[at + 1 :]]
    return ODD[rng.integers(len(ODD))]


TEXT = (*ANY, recoded)
JSON = (*TEXT, json_changed, json_changed, json_changed, json_changed)
