"""Quantised weights of ONNX graphs, multiplied out."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from data_pipeline.faces import shipped
from data_pipeline.faces.onnx_graphs import GraphError, dequantised, open_session, read_graph


def formula(quantised, scale, zero, axis, block):
    """Element by element."""
    out = np.zeros(quantised.shape, np.float64)
    for place in np.ndindex(*quantised.shape):
        if scale.size == 1:
            where = np.unravel_index(0, scale.shape)
        elif scale.ndim == 1:
            where = (place[axis],)
        else:
            where = tuple(p // block if a == axis else p for a, p in enumerate(place))
        out[place] = (float(quantised[place]) - float(zero[where])) * float(scale[where])
    return out


@pytest.mark.parametrize(
    ("shape", "axis", "block"),
    [((), 1, 4), ((1,), 0, 4), ((6,), 0, 0), ((7,), 1, 0), ((6, 2), 1, 4), ((3, 7), 0, 2)],
)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_scales_of_every_form(shape, axis, block, dtype):
    rng = np.random.default_rng(0)
    quantised = rng.integers(0, 100, (6, 7)).astype(dtype)
    scale = np.asarray(rng.uniform(0.1, 1, shape), np.float32)
    zero = np.asarray(rng.integers(0, 9, shape), dtype)
    found = dequantised(quantised, scale, zero, axis=axis, block_size=block)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, formula(quantised, scale, zero, axis, block), rtol=1e-6)
    without = dequantised(quantised, scale, axis=axis, block_size=block)
    np.testing.assert_allclose(without, formula(quantised, scale, 0 * zero, axis, block), rtol=1e-6)


def test_a_vector_in_blocks():
    """As a bias is stored: one scale for every three numbers."""
    found = dequantised(
        np.array([1, 2, 3, 4, 5], np.int8),
        np.float32([10, 100]),
        np.int8([0, 1]),
        axis=0,
        block_size=3,
    )
    assert found.tolist() == [10, 20, 30, 300, 400]


def write_quantised(path, listed: bool):
    """y = x @ w, with w in blocks behind a Reshape; ``listed``: weights are graph inputs too."""
    rng = np.random.default_rng(1)
    tensors = {
        "w_quantised": rng.integers(-9, 9, (6, 4)).astype(np.int8),
        "w_scale": rng.uniform(0.1, 1, (6, 2)).astype(np.float32),
        "w_zero": np.ones((6, 2), np.int8),
        "w_shape": np.array([4, 6], np.int64),
    }
    nodes = [
        helper.make_node(
            "DequantizeLinear", ["w_quantised", "w_scale", "w_zero"], ["w"], axis=1, block_size=2
        ),
        helper.make_node("Reshape", ["w", "w_shape"], ["w_reshaped"]),
        helper.make_node("MatMul", ["x", "w_reshaped"], ["y"]),
    ]
    values = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])]
    if listed:
        inputs += [helper.make_tensor_value_info(v.name, v.data_type, v.dims) for v in values]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 6])
    graph = helper.make_graph(nodes, "product", inputs, [output], values)
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return tensors


@pytest.mark.parametrize("listed", [False, True])
def test_a_folded_graph_runs(tmp_path, listed):
    path = tmp_path / "product.onnx"
    t = write_quantised(path, listed)
    model = read_graph(path)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
    assert [value.name for value in model.graph.input] == ["x"]
    x = np.random.default_rng(2).standard_normal((2, 4)).astype(np.float32)
    w = formula(t["w_quantised"], t["w_scale"], t["w_zero"], 1, 2).reshape(4, 6)
    (found,) = open_session(model).run(None, {"x": x})
    np.testing.assert_allclose(found, x @ w, rtol=1e-5)


def test_nothing_quantised_is_left_in_the_shipped_graphs():
    for network in shipped.FILES:
        graph = read_graph(shipped.shipped_file(network)).graph
        assert "DequantizeLinear" not in {node.op_type for node in graph.node}
        assert len(graph.input) == 1


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x07" * 50])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(GraphError, match="a.onnx: not an ONNX file"):
        read_graph(tmp_path / "a.onnx")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_graph(tmp_path / "nowhere.onnx")
