"""Recognisers' files: PyTorch's, safetensors and .onnx, against the PyTorch twin they come from."""

import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from persongen_jax.models.faces.iresnet import R50, R100, IResNet, complete_config
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.errors import (
    BadConfig,
    BadOnnx,
    KeyMismatch,
    MissingDependency,
    MissingFile,
    WeightsError,
)
from persongen_jax.weights.files.onnx_file import OnnxFile
from persongen_jax.weights.files.safetensors_file import write_safetensors
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.formats.arcface import (
    AURAFACE_LICENCE,
    COUNTER,
    INSIGHTFACE_LICENCE,
    infer_config,
    licence_hint,
    load_arcface,
    open_arcface,
)
from persongen_jax.weights.loader import parameter_leaves, to_torch_shape, torch_key
from persongen_jax.weights.saver import save_module
from tests.helpers.iresnet_twin import TorchIResNet, randomise_statistics
from tests.helpers.twins import nhwc, randomise, relative_error

TOLERANCE = 1e-5  # relative, float32 against float32

# Four stages as all published files have; crops of 17 to 32 pixels end at 2 x 2.
CONFIG = {"layers": (1, 2, 1, 1), "widths": (8, 12, 16, 20), "input_size": 32, "embedding_dim": 10}


@pytest.fixture(scope="module")
def twin():
    """A network with random weights; two of its slopes are equal, so that exporters share them."""
    model = randomise_statistics(randomise(TorchIResNet(**CONFIG)))
    with torch.no_grad():
        model.layer2[1].prelu.weight.copy_(model.layer2[0].prelu.weight)
    return model


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1


def export(model, path, size=32, **options):
    """PyTorch's exporter from the time when InsightFace wrote its files; their opset is 11."""
    pytest.importorskip("onnx", reason="torch.onnx.export needs the onnx package")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls itself legacy
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, size, size),),
            str(path),
            dynamo=False,
            input_names=["input.1"],
            dynamic_axes={"input.1": {0: "batch"}},
            **{"opset_version": 11, **options},
        )
    return path


@pytest.fixture(scope="module")
def onnx_path(twin, tmp_path_factory):
    return export(twin, tmp_path_factory.mktemp("onnx") / "w600k_tiny.onnx")


def check(recogniser, twin, images):
    with torch.no_grad():
        expected = twin(images).numpy()
    model = recogniser.model
    assert relative_error(jax.jit(lambda x: model(x))(nhwc(images)), expected) < TOLERANCE


def write_state_dict(path, state_dict):
    entries = [
        (key, tuple(t.shape), t.numpy().dtype, lambda t=t: t.numpy())
        for key, t in state_dict.items()
    ]
    write_safetensors(path, entries)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_arcface_torch_files(twin, images, tmp_path, suffix):
    path = tmp_path / f"backbone{suffix}"
    state_dict = twin.state_dict()
    assert any(key.endswith(COUNTER) for key in state_dict)
    if suffix == ".pth":
        torch.save(state_dict, path)
    else:
        write_state_dict(path, state_dict)
    recogniser = load_arcface(path)
    assert dict(recogniser.model.config) == complete_config(CONFIG)
    assert recogniser.licence == INSIGHTFACE_LICENCE
    check(recogniser, twin, images)
    with open_arcface(path) as source:
        assert all(key.endswith(COUNTER) for key in source.ignored)
        assert len(source.ignored) + len(source.keys()) == len(state_dict)


def test_our_own_file_comes_back_bit_equal(twin, tmp_path):
    """save_module writes arcface_torch's keys and layouts, running statistics included."""
    torch.save(twin.state_dict(), tmp_path / "a.pth")
    first = load_arcface(tmp_path / "a.pth").model
    save_module(first, tmp_path / "own", {}, file_name="model.safetensors")
    second = load_arcface(tmp_path / "own/model.safetensors", licence="ours: Apache-2.0")
    assert second.licence == "ours: Apache-2.0"
    first, second = parameter_leaves(first), parameter_leaves(second.model)
    assert len(first) == sum(not key.endswith(COUNTER) for key in twin.state_dict())
    assert all(bool((first[path] == second[path]).all()) for path in first)


def test_folded_and_numbered_onnx(twin, images, onnx_path):
    recogniser = load_arcface(onnx_path)
    assert dict(recogniser.model.config) == {**complete_config(CONFIG), "folded": True}
    block = recogniser.model.layer2[0]
    assert block.bn2 is None and block.bn3 is None and len(block.downsample) == 1
    check(recogniser, twin, images)
    # They were not found by name; and the equal slopes were stored once.
    stored = OnnxFile(onnx_path).keys()
    assert not [key for key in stored if "conv" in key or "prelu" in key]
    with open_arcface(onnx_path) as source:
        assert len(stored) == len(source.keys()) - 1
        np.testing.assert_array_equal(
            source.read("layer1.0.bn1.running_var"), twin.layer1[0].bn1.running_var.numpy()
        )


def test_onnx_runs_the_same_elsewhere(images, onnx_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(onnx_path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"input.1": images.numpy()})
    model = load_arcface(onnx_path).model
    assert relative_error(jax.jit(lambda x: model(x))(nhwc(images)), expected) < TOLERANCE


def test_onnx_that_was_not_folded(twin, images, tmp_path):
    options = {"training": torch.onnx.TrainingMode.PRESERVE, "opset_version": 17}
    recogniser = load_arcface(export(twin, tmp_path / "a.onnx", **options))
    assert dict(recogniser.model.config) == complete_config(CONFIG)
    check(recogniser, twin, images)


def test_half_precision_onnx(twin, images, onnx_path, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(onnx_path)
    for i, tensor in enumerate(model.graph.initializer):
        array = onnx.numpy_helper.to_array(tensor)
        if i % 2:  # the others as a packed list of floats, as other writers do
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float16), tensor.name))
        else:
            floats = onnx.helper.make_tensor(tensor.name, 1, array.shape, array.ravel())
            assert floats.float_data and not floats.raw_data
            tensor.CopyFrom(floats)
    onnx.save(model, tmp_path / "half.onnx")
    model = load_arcface(tmp_path / "half.onnx").model
    with torch.no_grad():
        expected = twin(images).numpy()
    assert 1e-5 < relative_error(model(nhwc(images)), expected) < 1e-2


def other_widths(graph):
    """Replace a convolution's kernel by something else."""
    conv = [node for node in graph.node if node.op_type == "Conv"][1]
    conv.input[1] = graph.node[-1].input[1]


def other_stride(graph):
    conv = [node for node in graph.node if node.op_type == "Conv"][1]
    next(a for a in conv.attribute if a.name == "strides").ints[:] = [2, 2]


def other_kind(graph):
    """Declare the strides as one real number."""
    conv = [node for node in graph.node if node.op_type == "Conv"][1]
    next(a for a in conv.attribute if a.name == "strides").type = 1


def other_epsilon(graph):
    norm = next(node for node in graph.node if node.op_type == "BatchNormalization")
    next(a for a in norm.attribute if a.name == "epsilon").f = 2e-5


def other_activation(graph):
    next(node for node in graph.node if node.op_type == "PRelu").op_type = "LeakyRelu"


def no_skip(graph):
    add = [node for node in graph.node if node.op_type == "Add"][1]
    add.input[1] = add.input[0]


def computed_weight(graph):
    conv = next(node for node in graph.node if node.op_type == "Conv")
    node = graph.node.add(op_type="Neg", input=[conv.input[1]], output=["negated"])
    conv.input[1] = "negated"
    nodes = [node, *graph.node[:-1]]
    copies = [type(node).FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def second_head(graph):
    features = graph.node[-1].output[0]
    graph.node.add(op_type="Relu", input=[features], output=["more"])


def unused_branch(graph):
    graph.node.add(op_type="Relu", input=["input.1"], output=["nowhere"])


def loop(graph):
    add = [node for node in graph.node if node.op_type == "Add"][0]
    add.input[0] = add.output[0]


def missing_tensor(graph):
    del graph.initializer[0]


def odd_type(graph):
    graph.initializer[0].data_type = 9


def short_data(graph):
    graph.initializer[0].raw_data = graph.initializer[0].raw_data[:-4]


def kept_outside(graph):
    graph.initializer[0].ClearField("raw_data")
    graph.initializer[0].data_location = 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_widths, "layer1.0.conv1.weight"),
        (other_stride, r"strides=\[2, 2\]"),
        (other_kind, r"strides=0.0"),
        (other_epsilon, "epsilon"),
        (other_activation, "PRelu.*LeakyRelu"),
        (no_skip, "layer2.0 adds"),
        (computed_weight, "computed in the graph"),
        (second_head, "does not end"),
        (unused_branch, "Relu"),
        (loop, "nothing before it makes"),
        (missing_tensor, "nothing before it makes"),
        (odd_type, "data type 9"),
        (short_data, "bytes of data"),
        (kept_outside, "outside of the file"),
    ],
)
def test_other_graphs_are_refused(onnx_path, tmp_path, change, named):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(onnx_path)
    change(model.graph)
    path = tmp_path / "other.onnx"
    onnx.save(model, path)
    with pytest.raises(WeightsError, match=f"(?s)other.onnx.*({named})"):
        load_arcface(path)


def test_damaged_onnx_ends_in_one_kind_of_error(onnx_path, tmp_path):
    """Truncated anywhere, or with any byte changed: refused or read, quickly, and nothing else."""
    whole = onnx_path.read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.onnx"
    refused, start = 0, time.monotonic()
    for trial in range(300):
        damaged = bytearray(whole)
        # The beginning and the end hold names and structure; the middle is weights.
        place = int(rng.choice([rng.integers(3000), rng.integers(len(whole))]))
        if trial % 3 == 0:
            damaged = damaged[:place]
        else:
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            with open_arcface(path) as source:
                infer_config(source)
                for key in source.keys():
                    source.read(key)
        except WeightsError as error:
            assert "damaged.onnx" in str(error)
            refused += 1
    assert refused > 100
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("content", [b"", b"hello", b"version https://git-lfs", b"\x80\x02}q\x00."])
def test_what_is_no_onnx_is_refused(tmp_path, content):
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(BadOnnx, match="a.onnx"):
        load_arcface(path)


@pytest.mark.parametrize(("config", "name"), [(R50, "r50"), (R100, "r100")])
def test_published_depths_are_inferred(config, name):
    leaves = parameter_leaves(nnx.eval_shape(lambda: IResNet(config, rngs=UnusedRngs())))
    shapes = {torch_key(p): to_torch_shape(p, leaf.shape) for p, leaf in leaves.items()}
    # Arrays of full shape that take no memory.
    tensors = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    assert infer_config(DictSource(tensors)) == complete_config(config)


def test_input_size_where_the_file_allows_several(twin, tmp_path):
    path = tmp_path / "a.pth"
    torch.save(twin.state_dict(), path)
    assert load_arcface(path, input_size=18).model.config["input_size"] == 18
    with pytest.raises(BadConfig, match="input_size"):
        load_arcface(path, input_size=33)


def test_dtypes(twin, tmp_path):
    torch.save(twin.state_dict(), tmp_path / "a.pth")
    model = load_arcface(tmp_path / "a.pth", dtype=jnp.bfloat16).model
    assert model.fc.kernel.get_value().dtype == jnp.bfloat16
    assert model.features.running_var.get_value().dtype == jnp.float32


def test_incomplete_and_foreign_state_dicts(twin, tmp_path):
    state_dict = twin.state_dict()
    del state_dict["layer2.1.bn3.running_var"]
    state_dict["head.weight"] = torch.zeros(3)
    torch.save(state_dict, tmp_path / "a.pth")
    with pytest.raises(KeyMismatch) as caught:
        load_arcface(tmp_path / "a.pth")
    assert list(caught.value.missing) == ["layer2.1.bn3.running_var"]
    assert list(caught.value.unexpected) == ["head.weight"]
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "b.pth")
    with pytest.raises(KeyMismatch, match="not an ArcFace IResNet"):
        load_arcface(tmp_path / "b.pth")


def test_missing_file_says_what_to_get(tmp_path):
    with pytest.raises(MissingFile, match="buffalo_l.zip.*non-commercial.*AuraFace"):
        load_arcface(tmp_path / "w600k_r50.onnx")


def test_licence_hints():
    assert licence_hint("models/buffalo_l/w600k_r50.onnx") == INSIGHTFACE_LICENCE
    assert licence_hint("models/antelopev2/glintr100.onnx") == INSIGHTFACE_LICENCE
    assert licence_hint("hub/models--fal--AuraFace-v1/glintr100.onnx") == AURAFACE_LICENCE


def test_without_the_onnx_package_its_extra_is_named(onnx_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependency, match=r"\.onnx: .*persongen_jax\[onnx\]"):
        load_arcface(onnx_path)
