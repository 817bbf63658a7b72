"""A judge that the method reads is detected by its weights, whatever its name."""

import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.mini.photomaker import get_config as miniature
from persongen_jax.metrics.base import Metric, Values
from persongen_jax.metrics.judge_check import check_judges, find_shared
from persongen_jax.metrics.registry import open_metrics
from persongen_jax.weights.formats.clip import load_vision_tower
from tests.helpers.encoders.tiny_clip import write_tiny_clip

ROOT = ("id_encoder/vision_model",)


class Model(nnx.Module):
    """The part of a method's model that the check reads."""

    def __init__(self, tower):
        self.id_encoder = nnx.Dict(vision_model=tower)
        self.vae = nnx.Linear(3, 3, rngs=nnx.Rngs(0))


def model_with(path, dtype=jnp.float32):
    return Model(load_vision_tower(path, dtype=dtype)[0])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    write_tiny_clip(folder)
    return folder


def metrics_by(folder):
    config = SimpleNamespace(metrics=("clip_t", "frechet_clip"), clip=str(folder))
    return open_metrics(config)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_copy_under_another_name_and_in_another_dtype_is_found(clip, dtype, tmp_path):
    shutil.copytree(clip, tmp_path / "judge")
    named = r"CLIP-T is judged by .*judge, .*id_encoder/vision_model/.*config\.clip.*'clip_t',"
    with pytest.raises(ValueError, match=named):
        check_judges(metrics_by(tmp_path / "judge"), model_with(clip, dtype), ROOT, ())


def test_admitted_judges_are_printed(clip, capsys):
    metrics, model = metrics_by(clip), model_with(clip)
    with pytest.raises(ValueError, match="Fréchet.*--judges-are-inputs clip_t frechet_clip"):
        check_judges(metrics, model, ROOT, ("clip_t",))
    capsys.readouterr()
    check_judges(metrics, model, ROOT, ("clip_t", "frechet_clip"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("admitted by config.judges_are_inputs" in x for x in lines)


def test_other_weights_of_the_same_shapes_are_another_judge(clip, capsys):
    model = model_with(clip)
    graphdef, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(0)
    moved = [x + 0.1 * np.std(x) * rng.standard_normal(x.shape).astype(x.dtype) for x in leaves]
    other = nnx.merge(graphdef, jax.tree.unflatten(tree, moved))
    check_judges(metrics_by(clip), other, ROOT, ("clip_t",))  # admitted, though nothing is shared
    assert capsys.readouterr().out == ""
    # Nor is a network that the method does not read.
    check_judges(metrics_by(clip), model, ("vae",), ())
    check_judges(metrics_by(clip), model, (), ())


def test_roots_are_whole_parts_of_a_path(clip):
    with pytest.raises(ValueError, match="'id_enc'"):
        check_judges(metrics_by(clip), model_with(clip), ("id_enc",), ())
    for root in ("id_encoder/", "id_encoder"):
        with pytest.raises(ValueError, match="judged by"):
            check_judges(metrics_by(clip), model_with(clip), (root,), ())


def test_no_method_of_the_miniature_reads_its_judges(capsys):
    config = miniature()
    model = model_with(config.id_encoder)
    check_judges(open_metrics(config), model, ROOT, ())
    assert "admitted" not in capsys.readouterr().out
    config.clip = config.id_encoder
    metrics = open_metrics(config)
    with pytest.raises(ValueError, match="CLIP-T is judged by"):
        check_judges(metrics, model, ROOT, ())
    check_judges(metrics, model, ROOT, ("clip_t",))
    shown = [line for line in capsys.readouterr().out.splitlines() if "admitted" in line]
    assert len(shown) == 1 and shown[0].startswith("CLIP-T")  # and no metric of faces


def test_a_tower_out_of_a_photomaker_file_counts():
    config = miniature()
    config.clip = config.id_encoder
    folder = config.id_encoder.replace("clip", "photomaker-v1.safetensors")
    with pytest.raises(ValueError, match="CLIP-T is judged by"):
        check_judges(open_metrics(config), model_with(folder), ROOT, ())


class Own(Metric):
    """A metric from elsewhere, whose judge is a plain dict of arrays."""

    name, title, judge = "own", "own", "own.npz"

    def __init__(self, kernel):
        self.kernel = kernel

    def networks(self):
        return ({"bias": np.zeros(3), "kernel": self.kernel},)

    def __call__(self, generated, known):
        return Values(np.zeros(len(generated.images)))


def test_a_judge_may_be_any_tree_of_arrays(clip):
    model = model_with(clip)
    kernel = np.asarray(model.vae.kernel[...])
    with pytest.raises(ValueError, match=r"own\.npz.*vae/kernel.*config\.metrics"):
        check_judges([Own(kernel)], model, ("vae/",), ())
    check_judges([Own(kernel.T)], model, ("vae/",), ())
    assert find_shared({"nothing": np.zeros(3)}, {}) == ""
