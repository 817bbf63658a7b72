"""A graph of MoveNet's form, written without TensorFlow: tiny, with weights from a fixed seed."""

import base64
import json

import numpy as np

JOINTS, SIZE, CELLS = 17, 16, 4


def kernels():
    """By name, [4, 4, 3, 17] each: a joint's heatmap, and its offsets down and across."""
    rng = np.random.default_rng(0)
    draw = {name: rng.standard_normal((4, 4, 3, JOINTS), np.float32) for name in ("heat", "y", "x")}
    return {"heat": draw["heat"], "y": 0.2 * draw["y"], "x": 0.2 * draw["x"]}


def write_pose_graph(path):
    """At ``path``, a .json, with the weights next to it: of 4 x 4 cells each joint takes the one
    with the largest heat and adds that cell's offsets, in cells; all scores are 0.9."""
    weights = {f"{name}_kernel": kernel for name, kernel in kernels().items()}
    numbers = np.arange(JOINTS, dtype=np.int32)
    weights |= {"joints": numbers, "four": np.int32(CELLS), "cell": np.float32(1 / CELLS)}
    weights |= {"scale": np.float32(2 / 255), "one": np.float32(1), "first": np.int32(0)}
    weights |= {"scores": np.full(JOINTS, 0.9, np.float32), "rows": np.int32([-1, JOINTS])}
    weights["shape"] = np.int32([1, 1, JOINTS, 3])
    shape = {"dim": [{"size": str(size)} for size in (1, SIZE, SIZE, 3)]}
    nodes = [{"name": "input", "op": "Placeholder", "attr": {"shape": {"shape": shape}}}]
    nodes += [{"name": name, "op": "Const"} for name in weights]

    def node(name, op, *inputs, **attributes):
        nodes.append({"name": name, "op": op, "input": list(inputs), "attr": attributes})

    strides = {"list": {"i": ["1", "4", "4", "1"]}}
    valid = {"s": base64.b64encode(b"VALID").decode()}
    real, second = {"type": "DT_FLOAT"}, {"i": "1"}
    node("float", "Cast", "input", DstT=real)
    node("scaled", "Mul", "float", "scale")
    node("pixels", "Sub", "scaled", "one")
    for name in ("heat", "y", "x"):
        node(f"{name}_map", "Conv2D", "pixels", f"{name}_kernel", strides=strides, padding=valid)
        node(f"{name}_cells", "Reshape", f"{name}_map", "rows")
    node("place", "ArgMax", "heat_cells", "first")
    node("where", "Pack", "place", "joints", axis=second)
    node("row", "FloorDiv", "place", "four")
    node("before", "Mul", "row", "four")
    node("column", "Sub", "place", "before")
    for name, whole in (("y", "row"), ("x", "column")):
        node(f"{name}_whole", "Cast", whole, DstT=real)
        node(f"{name}_offset", "GatherNd", f"{name}_cells", "where")
        node(f"{name}_sum", "AddV2", f"{name}_whole", f"{name}_offset")
        node(f"{name}_found", "Mul", f"{name}_sum", "cell")
    node("found", "Pack", "y_found", "x_found", "scores", axis=second)
    node("output", "Reshape", "found", "shape")
    entries = [
        {"name": name, "shape": list(array.shape), "dtype": array.dtype.name}
        for name, array in weights.items()
    ]
    manifest = [{"paths": ["pose.bin"], "weights": entries}]
    model = {"modelTopology": {"node": nodes}, "weightsManifest": manifest}
    path.write_text(json.dumps({"format": "graph-model", **model}))
    (path.parent / "pose.bin").write_bytes(b"".join(a.tobytes() for a in weights.values()))
    return path
