"""TensorFlow.js graph models: small ones of every operation, against TensorFlow itself."""

import base64
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.pose import tfjs
from data_pipeline.pose.movenet import MoveNet
from data_pipeline.pose.tfjs import ModelError, read_graph_model
from persongen_jax.losses.pose_readers import open_pose_reader
from persongen_jax.pose_nets import compiled, open_movenet, open_pose_net

tf = pytest.importorskip("tensorflow")
TOLERANCE = 1e-5  # of the largest value


def pose_like(image):
    """MoveNet's operations on a tiny image: a backbone, upsampling, and the joint nearest to a
    centre. Weights are drawn from a fixed seed."""
    rng = np.random.default_rng(0)

    def weight(*shape):
        return tf.constant(rng.standard_normal(shape) / np.prod(shape[:-1]) ** 0.5, tf.float32)

    x = tf.cast(image, tf.float32)
    x = tf.stack(tf.unstack(x, axis=0), 0) * (2 / 255) - 1.0
    x = tf.expand_dims(tf.squeeze(x, [0]), 0)
    x = tf.nn.relu6(tf.nn.bias_add(tf.nn.conv2d(x, weight(3, 3, 3, 8), 2, "SAME"), weight(8)))
    small = tf.nn.depthwise_conv2d(x, weight(3, 3, 8, 1), [1, 2, 2, 1], "SAME")
    small = tf.nn.relu(tf.nn.conv2d(small, weight(1, 1, 8, 8), 1, "VALID"))
    resize = tf.compat.v1.image.resize_bilinear
    x = x + resize(small, [12, 9], half_pixel_centers=True)
    x = x + resize(small, [12, 9], align_corners=True) + resize(small, [12, 9])
    heat = tf.sigmoid(tf.nn.conv2d(x, weight(1, 1, 8, 2), 1, "SAME"))
    place = tf.argmax(tf.reshape(heat, [-1, 2]), 0, output_type=tf.int32)
    row = tf.math.floordiv(place, 9)
    column = place - row * 9
    where = tf.stack([tf.zeros_like(row), row, column], 1)
    found = tf.unstack(tf.gather_nd(x, where), axis=1)
    far = tf.sqrt(tf.math.squared_difference(found[0], found[1])) / (1.0 + found[2] * found[2])
    both = [tf.cast(tf.stack([row, column], 1), tf.float32), tf.reshape(far, [2, 1])]
    return tf.identity(tf.expand_dims(tf.concat(both, 1), 0))


def frozen(function, shape, dtype):
    """TensorFlow's graph of a function with its constants."""
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    whole = tf.function(function).get_concrete_function(tf.TensorSpec(shape, dtype, "input"))
    return convert_variables_to_constants_v2(whole)


def write(path, concrete, quantised=None):
    """The model in TensorFlow.js's format; float weights as ``quantised`` says."""
    from google.protobuf import json_format

    graph = concrete.graph.as_graph_def()
    nodes, weights, data = [], [], b""
    for node in graph.node:
        entry = json_format.MessageToDict(node)
        if node.op == "Const":
            array = tf.make_ndarray(node.attr["value"].tensor)
            del entry["attr"]["value"]
            weight = {"name": node.name, "shape": list(array.shape), "dtype": array.dtype.name}
            if quantised and array.dtype == np.float32:
                low, step = float(array.min(initial=0)), float(np.ptp(array) / 255 or 1)
                weight["quantization"] = {"dtype": quantised, "original_dtype": "float32"}
                if quantised == "uint8":
                    weight["quantization"] |= {"scale": step, "min": low}
                    array = ((array - low) / step).round()
                array = array.astype(quantised)
            weights.append(weight)
            data += array.tobytes()
        nodes.append(entry)
    model = {
        "format": "graph-model",
        "modelTopology": {"node": nodes},
        "weightsManifest": [{"paths": ["a.bin", "b.bin"], "weights": weights}],
    }
    path.write_text(json.dumps(model))
    (path.parent / "a.bin").write_bytes(data[:100])
    (path.parent / "b.bin").write_bytes(data[100:])
    return path


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).integers(0, 256, (1, 23, 18, 3)).astype(np.int32)


@pytest.fixture(scope="module")
def concrete(image):
    return frozen(pose_like, image.shape, tf.int32)


@pytest.mark.parametrize("by", ["numpy", "jax"])
def test_what_tensorflow_computes(concrete, image, by, tmp_path):
    model = read_graph_model(write(tmp_path / "model.json", concrete))
    operations = {node.op for node in model.nodes}
    assert {"GatherNd", "ResizeBilinear", "Conv2D", "DepthwiseConv2dNative", "ArgMax"} <= operations
    found = model(image)[0] if by == "numpy" else compiled(model)(image)
    wanted = concrete(tf.constant(image))[0].numpy()
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE * np.abs(wanted).max())


@pytest.mark.parametrize(("stored", "near"), [("float16", 5e-3), ("uint8", 0.2)])
def test_smaller_weights_are_multiplied_out(image, stored, near, tmp_path):
    kernel = np.random.default_rng(0).standard_normal((3, 3, 3, 4)).astype(np.float32)
    function = frozen(
        lambda x: tf.nn.conv2d(tf.cast(x, tf.float32) / 255, kernel, 1, "SAME"),
        image.shape,
        tf.int32,
    )
    model = read_graph_model(write(tmp_path / "model.json", function, stored))
    wanted = function(tf.constant(image))[0].numpy()
    gap = np.abs(model(image)[0] - wanted).max()
    assert 0 < gap < near * np.abs(wanted).max()


def test_fused_operations():
    """The converter fuses a convolution with its bias and activation."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 7, 6, 3)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 3, 4)).astype(np.float32)
    depthwise = rng.standard_normal((3, 3, 3, 1)).astype(np.float32)
    bias = rng.standard_normal(4).astype(np.float32)
    attributes = {"strides": [1, 2, 2, 1], "padding": "SAME", "fused_ops": ["BiasAdd", "Relu6"]}
    found = tfjs.OPERATIONS["_FusedConv2D"](np, attributes, x, kernel, bias)
    wanted = tf.nn.relu6(tf.nn.conv2d(x, kernel, 2, "SAME") + bias)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    found = tfjs.OPERATIONS["FusedDepthwiseConv2dNative"](np, attributes, x, depthwise, bias[:3])
    wanted = tf.nn.depthwise_conv2d(x, depthwise, [1, 2, 2, 1], "SAME") + bias[:3]
    np.testing.assert_allclose(found, tf.nn.relu6(wanted), atol=1e-5)
    with pytest.raises(ModelError, match="Elu after a convolution"):
        tfjs.OPERATIONS["_FusedConv2D"](np, {**attributes, "fused_ops": ["Elu"]}, x, kernel)


def test_a_floating_input_can_be_differentiated(tmp_path):
    kernel = np.random.default_rng(0).standard_normal((3, 3, 2, 4)).astype(np.float32)
    function = frozen(
        lambda x: tf.sigmoid(tf.nn.conv2d(x, kernel, 2, "SAME")), (1, 8, 8, 2), tf.float32
    )
    run = compiled(read_graph_model(write(tmp_path / "model.json", function)))
    x = np.random.default_rng(1).standard_normal((1, 8, 8, 2)).astype(np.float32)
    with tf.GradientTape() as tape:
        tape.watch(given := tf.constant(x))
        total = tf.reduce_sum(function(given)[0] ** 2)
    ours = jax.grad(lambda x: jnp.square(run(x)).sum())(x)
    np.testing.assert_allclose(ours, tape.gradient(total, given), atol=1e-5)


# ---- MoveNet's own form ------------------------------------------------------------------------


def test_joints_are_pixels_of_the_image(tmp_path):
    """A net whose joints are all at the reddest pixel."""

    def reddest(image):
        red = tf.unstack(tf.unstack(tf.cast(image, tf.float32), axis=0)[0], axis=2)[0]
        place = tf.argmax(tf.reshape(red, [256]), 0, output_type=tf.int32)
        row = tf.math.floordiv(place, 16)
        places = (row, place - row * 16)
        scores = tf.constant([0.1] * 5 + [0.9] * 12)
        y, x = (tf.cast(p, tf.float32) * (1 / 16) + scores * 0.0 for p in places)
        return tf.reshape(tf.stack([y, x, scores], 1), [1, 1, 17, 3])

    path = write(tmp_path / "movenet.json", frozen(reddest, (1, 16, 16, 3), tf.int32))
    tall, wide = np.zeros((16, 8, 3), np.uint8), np.zeros((8, 16, 3), np.uint8)
    tall[5, 2], wide[3, 11], wide[0, 0] = (200, 0, 0), (200, 0, 0), (0, 255, 255)
    for net in (MoveNet(path), open_movenet(path)):
        assert net.size == 16 and "Google" in net.licence
        first, second, large = net([tall, wide, wide.repeat(4, 0).repeat(4, 1)])
        assert np.allclose(first.joints, [(2, 5)]) and np.allclose(second.joints, [(11, 3)])
        assert np.allclose(large.joints, [(44, 12)])
        joints, visible = first.body()
        assert joints.shape == (12, 2) and visible.all() and first.scores[0] == np.float32(0.1)
    joints, found = open_pose_net(f"movenet:{path}")([tall, wide])
    assert np.allclose(joints[:, 0], [(2, 5), (11, 3)]) and found.all() and found.shape == (2, 12)
    joints, scores = open_pose_net(f"movenet:{path}").points([tall, wide])
    assert np.allclose(joints, [[(2, 5)] * 17, [(11, 3)] * 17])
    np.testing.assert_allclose(scores, [[0.1] * 5 + [0.9] * 12] * 2)
    # Within a training step: a batch, in sides of the images.
    both = np.stack([tall, np.roll(tall, 2, axis=0)]) / 255
    within = open_pose_reader(f"movenet:{path}")(jnp.asarray(both, jnp.float32))
    np.testing.assert_allclose(within, [[(2 / 8, y / 16)] * 12 for y in (5, 7)], atol=1e-6)


# ---- Faults ------------------------------------------------------------------------------------


def test_faults_are_named(concrete, tmp_path):
    path = write(tmp_path / "model.json", concrete)
    with pytest.raises(ModelError, match="not MoveNet"):
        MoveNet(path)
    held = json.loads(path.read_text())
    other = tmp_path / "other.json"

    def refused(match, **changes):
        other.write_text(json.dumps({**held, **changes}))
        with pytest.raises(ModelError, match=match):
            read_graph_model(other)

    nodes = held["modelTopology"]["node"]
    refused(
        "operations that are not read here: Softmax",
        modelTopology={"node": [*nodes, {"name": "s", "op": "Softmax"}]},
    )
    lost = {"name": "s", "op": "Relu", "input": ["gone"]}
    refused("s has no input that anything makes", modelTopology={"node": [*nodes, lost]})
    other.write_text("{}")
    with pytest.raises(ModelError, match="not a TensorFlow.js graph model"):
        read_graph_model(other)
    (tmp_path / "b.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="too short"):
        read_graph_model(path)
    (tmp_path / "b.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.bin: missing"):
        read_graph_model(path)


def test_texts_and_numbers_of_attributes():
    text = base64.b64encode(b"SAME").decode()
    assert tfjs._attribute({"s": text}) == "SAME" and tfjs._attribute({"i": "3"}) == 3
    assert tfjs._attribute({"list": {"i": ["1", "2"]}}) == [1, 2]
    assert tfjs._attribute({"list": {}}) == [] and tfjs._attribute({"b": True}) is True
    assert tfjs._attribute({"shape": {"dim": [{"size": "-1"}]}}) == (-1,)
