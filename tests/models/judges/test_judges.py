"""FID's Inception, LPIPS and FaceNet against the public tools, from files of their own layouts.

What the tools gave for the same seeded weights is stored: tests/goldens/judges/record.py.
"""

import functools

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from persongen_jax.models.judges.facenet import FaceNet
from persongen_jax.models.judges.inception import InceptionV3
from persongen_jax.models.judges.lpips import LPIPS
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.formats.judges.facenet import load_facenet
from persongen_jax.weights.formats.judges.inception import load_inception
from persongen_jax.weights.formats.judges.lpips import load_lpips
from persongen_jax.weights.loader import parameter_leaves
from tests.helpers.encoders.judge_files import golden, patterns, seeded, shapes_of
from tests.helpers.twins import relative_error

TOLERANCE = 1e-4  # relative, of float32; the worst measured are in docs/metrics.md
WIDTHS = [2, pytest.param(32, marks=pytest.mark.slow)]
GOLDEN = golden()


def scaled(images, centre, scale):
    return (images.astype(np.float32) - centre) / scale


def written(net, path):
    """A file as the tool saves it, counters included."""
    torch.save({k: torch.from_numpy(v) for k, v in seeded(shapes_of(net)).items()}, path)
    return path


def compiled(net, call):
    """``call(net, *images)`` as one program, for whatever weights ``net`` has then."""
    graphdef, _ = nnx.split(net)
    program = jax.jit(lambda state, *images: call(nnx.merge(graphdef, state), *images))
    return lambda *images: program(nnx.split(net)[1], *images)


@pytest.mark.parametrize("width", WIDTHS)
def test_inception_as_torch_fidelity_and_pytorch_fid(width, tmp_path):
    net = load_inception(written(f"inception {width}", tmp_path / "inception.pth"))
    assert net.config.to_dict() == {"width": width, "classes": 1008}
    images = patterns(2 if width == 2 else 1, 299, 299, seed=0)
    run = compiled(net, lambda net, x: ([each.mean((1, 2)) for each in net.maps(x)], net(x)))
    maps, out = run(scaled(images, 128, 128))
    wanted = [GOLDEN[f"inception {width} {tap}"] for tap in (64, 192, 768, 2048)]
    for found, theirs in zip(maps, wanted, strict=True):
        assert relative_error(found, theirs) < TOLERANCE
    assert relative_error(out.features, wanted[-1]) < TOLERANCE
    assert relative_error(out.logits, GOLDEN[f"inception {width} logits_unbiased"]) < TOLERANCE
    _, out = run(2 * scaled(images, 0, 255) - 1)
    assert relative_error(out.features, GOLDEN[f"pytorch-fid {width} 2048"]) < TOLERANCE


@pytest.mark.parametrize(
    ("net", "by"), [("alex", 1), ("vgg", 16), pytest.param("vgg", 1, marks=pytest.mark.slow)]
)
def test_lpips_as_the_authors_package(net, by, tmp_path):
    loaded = load_lpips(written(f"lpips {net} {by}", tmp_path / "lpips.pth"))
    assert loaded.config["net"] == net
    a, b = (scaled(patterns(3, 64, 80, seed), 127.5, 127.5) for seed in (5, 6))
    run = compiled(loaded, lambda net, a, b: net(a, b))
    found = run(a, b)
    assert found.shape == (3,) and found.dtype == np.float32
    assert relative_error(found, GOLDEN[f"lpips {net} {by}"]) < TOLERANCE
    assert np.array_equal(run(a, a), [0, 0, 0])
    for i in range(5):  # each map alone, by heads of zeros for all others
        for j, head in enumerate(loaded.heads):
            head.set_value(seeded_head(net, by, j) * (i == j))
        assert relative_error(run(a, b), GOLDEN[f"lpips {net} {by} layers"][i]) < TOLERANCE


@functools.cache
def seeded_head(net, by, i):
    key = f"lin{i}.model.1.weight"
    return jax.numpy.asarray(seeded({key: shapes_of(f"lpips {net} {by}")[key]})[key][0, :, 0, 0])


@pytest.mark.parametrize("width", WIDTHS)
def test_facenet_as_facenet_pytorch(width, tmp_path):
    net = load_facenet(written(f"facenet {width}", tmp_path / "facenet.pt")).model
    dim = 16 * width
    assert net.config.to_dict() == {"input_size": 160, "embedding_dim": dim, "crop": "box"}
    images = scaled(patterns(2, 160, 160, seed=7), 127.5, 127.5)
    found = compiled(net, lambda net, x: net(x))(images)
    assert found.shape == (2, dim) and found.dtype == np.float32
    assert relative_error(found, GOLDEN[f"facenet {width}"]) < TOLERANCE


def test_the_published_sizes():
    """Every key and shape of the tools' own networks; without heads, classes and counters."""
    nets = {
        "inception 32": InceptionV3,
        "facenet 32": FaceNet,
        "lpips alex 1": LPIPS,
        "lpips vgg 1": lambda rngs: LPIPS("vgg", rngs=rngs),
    }
    unused = ("num_batches_tracked", "shift", "scale")
    for name, build in nets.items():
        net = nnx.eval_shape(lambda build=build: build(rngs=UnusedRngs()))
        ours = sum(leaf.size for leaf in parameter_leaves(net).values())
        theirs = {k: s for k, s in shapes_of(name).items() if not k.startswith("lins.")}
        assert ours == sum(np.prod(s) for k, s in theirs.items() if not k.endswith(unused)), name


def traced(build, *arguments, image=None):
    """Builds a network in shapes, and calls it; nothing is computed."""

    def make():
        net = build(*arguments, rngs=UnusedRngs())
        if image is not None:
            net(*[np.zeros(image, np.float32)] * (2 if build is LPIPS else 1))
        return net

    return nnx.eval_shape(make)


def test_images_that_are_too_small_are_named():
    for build, side in ((InceptionV3, 75), (FaceNet, 80), (LPIPS, 31)):
        arguments = () if build is LPIPS else (2,)
        with pytest.raises(ValueError, match=rf"\(1, {side - 1}, 200, 3\).*{side}"):
            traced(build, *arguments, image=(1, side - 1, 200, 3))
    for build in (InceptionV3, FaceNet):
        with pytest.raises(ValueError, match="width=3"):
            traced(build, 3)
    with pytest.raises(ValueError, match="no net 'squeeze'; there are alex, vgg"):
        traced(LPIPS, "squeeze")
    with pytest.raises(ValueError, match="alex has 5 convolutions"):
        traced(LPIPS, "alex", (4, 4))
