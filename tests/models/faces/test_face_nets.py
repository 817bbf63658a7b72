"""YuNet and SFace in JAX against onnxruntime on the published graphs, on real photographs.

Tolerance: 1e-4, ||a - b|| / ||b||, float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from flax import nnx
from onnx import numpy_helper
from PIL import Image

from data_pipeline.faces import shipped
from data_pipeline.faces.align import align_face
from data_pipeline.faces.detectors.yunet import OUTPUTS, YuNetDetector
from data_pipeline.faces.onnx_graphs import open_session, read_graph
from data_pipeline.faces.recognisers.sface import SFaceRecogniser
from persongen_jax.metrics.face_embedder import open_face_embedder
from persongen_jax.models.faces.iresnet import normalise_faces
from persongen_jax.weights.errors import BadOnnx, KeyMismatch
from persongen_jax.weights.formats.opencv_faces import load_sface, load_yunet
from tests.helpers.twins import relative_error

skimage_data = pytest.importorskip("skimage.data")
TOLERANCE = 1e-4


def photographs(count, height, width):
    """Different cuts of scikit-image's photographs."""
    whole = [Image.fromarray(getattr(skimage_data, n)()) for n in ("astronaut", "cat", "coffee")]
    rng = np.random.default_rng(count)
    cuts = []
    for i in range(count):
        image = whole[i % len(whole)]
        left, top = rng.integers(0, 40, 2)
        cut = image.crop((left, top, image.width - 20, image.height - 20))
        cuts.append(np.asarray(cut.resize((width, height))))
    return np.stack(cuts)


def of_size(height, width):
    """The published graph, whose size is fixed, for another; its outputs' names before sigmoid."""
    model = read_graph(shipped.shipped_file("yunet"))
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[2].dim_value, dims[3].dim_value = height, width
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    logits = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Sigmoid"}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in logits.values())
    return open_session(model), logits


@pytest.fixture(scope="module")
def yunet():
    graphdef, state = nnx.split(load_yunet())
    return jax.jit(lambda x: nnx.merge(graphdef, state)(x))


@pytest.mark.parametrize(
    ("count", "height", "width"), [(1, 640, 640), (3, 320, 320), (2, 96, 160), (5, 32, 64)]
)
def test_yunet_of_several_sizes(yunet, count, height, width):
    images = photographs(count, height, width).astype(np.float32)
    ours = yunet(images)
    session, logits = of_size(height, width)
    names = [logits.get(name, name) for name in OUTPUTS]
    rows = [
        session.run(
            [*names, *OUTPUTS], {"input": image[None, ..., ::-1].transpose(0, 3, 1, 2).copy()}
        )
        for image in images
    ]
    rows = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
    for name, before, after in zip(OUTPUTS, rows, rows[len(names) :], strict=False):
        found = np.asarray(ours[name])
        # onnxruntime's sigmoid is an approximation, good to 1e-7, so the logits are compared.
        assert np.abs(found - after).max() < 1e-5 or name not in logits, name
        found = np.log(found) - np.log1p(-found) if name in logits else found
        assert relative_error(found, before) < TOLERANCE, name


@pytest.fixture(scope="module")
def crops():
    """Aligned faces: hers, and cuts at the same place of other photographs."""
    image = skimage_data.astronaut()
    (face,) = YuNetDetector().detect([image])
    faces = [align_face(image, face.landmarks + shift) for shift in (0, 3, -5)]
    return np.stack([*faces, *photographs(4, 112, 112)])


SLOW = (pytest.param(count, marks=pytest.mark.slow) for count in (1, 7))


@pytest.mark.parametrize("count", [3, *SLOW])
def test_sface(crops, count):
    net = load_sface()
    ours = jax.jit(net.model)(normalise_faces(crops[:count]))
    ours = ours / jnp.linalg.norm(ours, axis=1, keepdims=True)
    theirs = SFaceRecogniser().embed_crops(crops[:count])
    assert ours.shape == (count, 128)
    assert relative_error(ours, theirs) < TOLERANCE
    assert "Apache-2.0" in net.licence


def test_layer_by_layer(crops):
    """Every third layer of SFace, and the last ones."""
    model = read_graph(shipped.shipped_file("sface"))
    names = [f"conv_{i}{end}_relu" for i in range(2, 15) for end in ("_dw", "")]
    for name in ["conv_1_relu", *names]:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    outputs = open_session(model).run(
        ["conv_1_relu", *names], {"data": crops[:1].transpose(0, 3, 1, 2).astype(np.float32)}
    )
    net = load_sface().model
    x = net.conv_1(normalise_faces(crops[:1]) * (127.5 / 128))
    assert relative_error(x, outputs[0].transpose(0, 2, 3, 1)) < TOLERANCE
    for layer, theirs, name in zip(net.layers, outputs[1:], names, strict=True):
        x = layer(x)
        assert relative_error(x, theirs.transpose(0, 2, 3, 1)) < TOLERANCE, name


def test_gradients_reach_the_image(crops):
    """They are part of losses: JAX's gradient is the difference quotient's."""
    graphdef, state = nnx.split(load_sface().model)
    wanted = np.random.default_rng(0).standard_normal(128).astype(np.float32)
    loss = jax.jit(lambda x: (nnx.merge(graphdef, state)(x)[0] * wanted).sum())
    x = normalise_faces(crops[:1])
    gradient = jax.grad(loss)(x)
    step = 1e-2 * gradient / jnp.linalg.norm(gradient)
    slope = (loss(x + step) - loss(x - step)) / 2
    assert slope == pytest.approx(float((gradient * step).sum()), rel=2e-2)


def test_the_shipped_files_judge_faces():
    embedder = open_face_embedder("sface", "yunet")
    assert embedder.dim == 128 and "SFace" in embedder.licence and "YuNet" in embedder.licence
    image = skimage_data.astronaut()
    embeddings, found = embedder.embed([image, image[:, ::-1], skimage_data.coffee()])
    assert found.tolist() == [True, True, False]
    assert embeddings[0] @ embeddings[1] > 0.6
    file = open_face_embedder(str(shipped.shipped_file("sface")), "yunet")
    assert np.array_equal(file.embed([image])[0], embeddings[:1])


def test_other_graphs_are_refused(tmp_path):
    with pytest.raises(BadOnnx, match="not YuNet"):
        load_yunet(shipped.shipped_file("sface"))
    with pytest.raises(KeyMismatch):
        load_sface(shipped.shipped_file("yunet"))
    model = read_graph(shipped.shipped_file("sface"))
    (tensor,) = [t for t in model.graph.initializer if t.name == "fc1_beta"]
    tensor.CopyFrom(numpy_helper.from_array(np.zeros(64, np.float32), "fc1_beta"))
    onnx.save(model, tmp_path / "half.onnx")
    with pytest.raises(KeyMismatch, match="features.bias"):
        load_sface(tmp_path / "half.onnx")


@pytest.mark.parametrize(("network", "load"), [("yunet", load_yunet), ("sface", load_sface)])
def test_float_files_are_read(network, load, tmp_path):
    """OpenCV's float files name the same weights without the steps of quantisation."""
    model = read_graph(shipped.shipped_file(network))

    def plain(name):
        return name.removesuffix("_reshaped").removesuffix("_dequantized")

    for tensor in model.graph.initializer:
        tensor.name = plain(tensor.name)
    for node in model.graph.node:
        node.input[:] = [plain(name) for name in node.input]
    if network == "sface":  # it lists its weights as inputs, too
        model.graph.input.extend(
            onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
            for t in model.graph.initializer
        )
    onnx.save(model, tmp_path / "float.onnx")
    found, wanted = load(tmp_path / "float.onnx"), load()
    if network == "sface":
        found, wanted = found.model, wanted.model
    for a, b in zip(
        jax.tree.leaves(nnx.state(found)), jax.tree.leaves(nnx.state(wanted)), strict=True
    ):
        assert np.array_equal(a, b)
    image = skimage_data.astronaut()
    if network == "yunet":
        assert len(YuNetDetector(tmp_path / "float.onnx").find([image])[0]) == 1
    else:
        crop = image[None, :112, :112]
        theirs = SFaceRecogniser(tmp_path / "float.onnx").embed_crops(crop)
        assert np.array_equal(theirs, SFaceRecogniser().embed_crops(crop))
