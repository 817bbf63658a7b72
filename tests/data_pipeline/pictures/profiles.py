"""Minimal ICC profiles (ICC.1:2001, sections 6 and 7), byte by byte: matrices and a gamma."""

import struct

import numpy as np

D65, D50 = np.array([0.95047, 1, 1.08883]), np.array([0.9642, 1, 0.8249])
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))


def to_xyz(primaries) -> np.ndarray:
    """[3, 3]: linear RGB to XYZ under D50."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    matrix = columns * np.linalg.solve(columns, D65)
    cone = np.diag((BRADFORD @ D50) / (BRADFORD @ D65))
    return np.linalg.inv(BRADFORD) @ cone @ BRADFORD @ matrix


def rgb_profile(primaries, gamma: float) -> bytes:
    matrix = to_xyz(primaries)
    tags = {f"{c}XYZ": _xyz(matrix[:, i]) for i, c in enumerate("rgb")}
    return _profile(b"RGB ", tags | {f"{c}TRC": _curve(gamma) for c in "rgb"})


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", {"kTRC": _curve(gamma)})


def cmyk_profile() -> bytes:
    """Ink to Lab by a table of 2^4 corners: lightness falls with every ink, colours are dull."""
    corners = np.stack(np.meshgrid(*[[0.0, 1.0]] * 4, indexing="ij"), -1).reshape(16, 4)
    c, m, y, k = corners.T
    light = 100 * (1 - 0.3 * c) * (1 - 0.4 * m) * (1 - 0.1 * y) * (1 - k)
    a, b = (128 + 40 * (m - c) * (1 - k)), (128 + 60 * (y - c / 2 - m / 4) * (1 - k))
    values = np.stack([light * 2.55, a, b], -1).round().astype(np.uint8)
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0])
    table += struct.pack(">9i", *(65536 * np.eye(3, dtype=int)).ravel().tolist())
    table += bytes(range(256)) * 4 + values.tobytes() + bytes(range(256)) * 3
    return _profile(b"CMYK", {"A2B0": table}, b"prtr", b"Lab ")


def _profile(space: bytes, tags: dict, kind=b"mntr", connection=b"XYZ ") -> bytes:
    tags = {"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78), **tags}
    tags |= {"cprt": b"text\0\0\0\0x\0", "wtpt": _xyz(D50)}
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, tag in tags.items():
        table += name.encode() + struct.pack(">II", start + len(data), len(tag))
        data += tag + bytes(-len(tag) % 4)
    body = struct.pack(">I", len(tags)) + table + data
    head = struct.pack(
        ">I4sI4s4s4s", 128 + len(body), b"\0\0\0\0", 0x02400000, kind, space, connection
    )
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz(D50)[8:]
    return head.ljust(128, b"\0") + body


def _xyz(values) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
