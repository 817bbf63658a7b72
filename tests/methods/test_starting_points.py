"""What a method starts from: a PhotoMaker file, or an earlier run."""

import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from persongen_jax import train
from persongen_jax.config import VERSION
from persongen_jax.methods import METHODS
from persongen_jax.methods.start import pin_start_step
from persongen_jax.models.branches import Composition
from persongen_jax.models.lora import lora_layers
from persongen_jax.systems.open import open_system
from persongen_jax.training.checkpoint import Checkpoints
from persongen_jax.training.partition import leaf_paths, split_model
from persongen_jax.weights.errors import KeyMismatch, MissingFile
from persongen_jax.weights.formats.photomaker import save_photomaker
from persongen_jax.weights.licences import say_terms, say_terms_of
from tests.helpers.training_runs import changed

TOWER = 3  # difference between the file's image tower and the base's


@pytest.fixture(scope="module")
def photomaker_file(build, tmp_path_factory):
    """A PhotoMaker file whose LoRA has an effect, with its own image tower."""
    model = nnx.clone(build("photomaker").model)
    for i, layer in enumerate(lora_layers(model.unet).values()):
        layer.lora.up.set_value(jax.random.normal(jax.random.key(i), layer.lora.up.shape))
    kernel = model.id_encoder.visual_projection.kernel
    kernel.set_value(kernel.get_value() + 1)
    bias = model.id_encoder.vision_model.post_layernorm.bias
    bias.set_value(bias.get_value() + TOWER)
    path = tmp_path_factory.mktemp("photomaker") / "photomaker.safetensors"
    save_photomaker(model, path)
    return path


def compositions(unet):
    return [layer for _, layer in nnx.iter_graph(unet) if isinstance(layer, Composition)]


def started(config, name, source):
    return open_system(changed(config, method=name, start_from=str(source))).model


def test_ip_lora_starts_with_photomakers_lora_on_both_once(config, build, photomaker_file):
    model = started(config, "ip_lora", photomaker_file)
    plain = compositions(build("ip_lora").model.unet)
    layers = compositions(model.unet)
    assert len(layers) == len(plain) > 0
    for layer, bare in zip(layers, plain, strict=True):
        branch = layer.branches["identity"]
        for name in ("to_k", "to_v"):
            base, copy = getattr(layer, name), getattr(branch, name)
            x = jax.random.normal(jax.random.key(0), (2, base.kernel.shape[0]))
            assert np.array_equal(base(x), copy(x))
            assert not np.allclose(base(x), getattr(bare, name)(x))
            assert base.lora.up[...] is not copy.lora.up[...]


def test_methods_without_lora_load_the_id_encoder_of_a_photomaker_file(
    config, build, photomaker_file, capsys
):
    for said in (say_terms, say_terms_of):
        said.cache_clear()
    model, fresh = started(config, "dual", photomaker_file), build("dual").model
    encoder, own = model.id_encoder, model.id_tokens.visual_projection_3.kernel[...]
    heads = (encoder.visual_projection, encoder.visual_projection_2)
    assert np.array_equal(own, np.concatenate([head.kernel[...] for head in heads], axis=1))
    first = fresh.id_encoder.visual_projection.kernel[...]
    assert np.allclose(encoder.visual_projection.kernel[...], first + 1)
    assert not lora_layers(model.unet)
    assert f"weights are read from {photomaker_file}; its licence:" in capsys.readouterr().err


def write_run(workdir, model, name, step=0, **config):
    """The checkpoint of a run of method ``name`` that has changed all trained weights by 1."""
    trainable = split_model(model, METHODS[name]().groups)[1]
    trainable = {path: array + 1 for path, array in trainable.items()}
    checkpoints = Checkpoints(workdir)
    checkpoints.save(
        step, trainable, {"count": np.zeros(1)}, {"version": VERSION, "method": name, **config}
    )
    checkpoints.close()
    return trainable


def test_a_run_goes_on_in_stages(config, build, tmp_path):
    """Heads and MLP of the earlier run; a LoRA of another rank starts anew (thesis, A.1.5)."""
    trainable = write_run(tmp_path, build("photomaker").model, "photomaker")
    for rank in (config.rank, config.rank + 1):
        here = changed(config, rank=rank, start_from=str(tmp_path), method="photomaker_bg")
        leaves = leaf_paths(open_system(here).model)
        for path, array in trainable.items():
            taken = np.array_equal(leaves[path].get_value(), array)
            assert taken == (rank == config.rank or "/lora/" not in path)
    with pytest.raises(KeyMismatch, match="another method"):
        started(config, "id_branch", tmp_path)


@pytest.mark.parametrize("extra_rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_goes_on_from_what_the_run_before_it_started_from(
    extra_rank, config, build, photomaker_file, tmp_path
):
    """Two stages back there is a file; only its image tower is in no checkpoint."""
    model = build("photomaker").model
    heads = write_run(tmp_path / "a", model, "photomaker", start_from=str(photomaker_file))
    fewer = {path: array + 1 for path, array in heads.items() if "visual_projection" in path}
    checkpoints = Checkpoints(tmp_path / "b")
    settings = {"version": VERSION, "method": "photomaker", "start_from": str(tmp_path / "a")}
    checkpoints.save(0, fewer, {"count": np.zeros(1)}, settings)
    checkpoints.close()
    here = changed(config, rank=config.rank + extra_rank, start_from=str(tmp_path / "b"))
    leaves = leaf_paths(open_system(here).model)
    bias = "id_encoder/vision_model/post_layernorm/bias"
    own = leaf_paths(model)[bias].get_value()
    assert np.allclose(leaves[bias].get_value(), own + TOWER)
    for path, array in {**heads, **fewer}.items():
        taken = np.array_equal(leaves[path].get_value(), array)
        assert taken == (not extra_rank or "/lora/" not in path)
    # A run without LoRA loads none, and one that introduces LoRA loads the file's.
    settings["start_from"] = str(photomaker_file)
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(0, fewer, {"count": np.zeros(1)}, {**settings, "method": "dual"})
    checkpoints.close()
    here = changed(here, start_from=str(tmp_path / "c"))
    layers = lora_layers(open_system(here).model.unet).values()
    assert all(layer.lora.up[...].any() != bool(extra_rank) for layer in layers)
    assert not lora_layers(started(config, "dual", tmp_path / "c").unet)


def test_what_is_copied_is_copied_from_what_the_earlier_run_trained(config, build, tmp_path):
    write_run(tmp_path / "photomaker", build("photomaker").model, "photomaker")
    for layer in compositions(started(config, "ip_lora", tmp_path / "photomaker").unet):
        for name in ("to_k", "to_v"):
            base, copy = getattr(layer, name).lora, getattr(layer.branches["identity"], name).lora
            assert base.up[...].any() and np.array_equal(base.up[...], copy.up[...])
            assert np.array_equal(base.down[...], copy.down[...])
    # Copies that the earlier run trained itself keep their trained weights.
    model = nnx.clone(build("ip_lora").model)
    for layer in compositions(model.unet):
        lora = layer.branches["identity"].to_k.lora
        lora.up.set_value(lora.up[...] + 3)
    trained = write_run(tmp_path / "ip_lora", model, "ip_lora")
    leaves = leaf_paths(started(config, "ip_lora", tmp_path / "ip_lora"))
    assert all(np.array_equal(leaves[path].get_value(), x) for path, x in trained.items())

    write_run(tmp_path / "heads", build("id_branch").model, "id_branch")
    model = started(config, "dual", tmp_path / "heads")
    heads = (model.id_encoder.visual_projection, model.id_encoder.visual_projection_2)
    first = build("dual").model.id_encoder.visual_projection.kernel[...]
    assert np.array_equal(heads[0].kernel[...], first + 1)
    both = np.concatenate([head.kernel[...] for head in heads], axis=1)
    assert np.array_equal(model.id_tokens.visual_projection_3.kernel[...], both)


def test_the_step_that_a_run_started_from_stays_the_same(config, build, tmp_path):
    path = "id_encoder/visual_projection/kernel"
    model, source = build("photomaker").model, tmp_path / "earlier"
    first = write_run(source, model, "photomaker", step=3)[path]
    here = pin_start_step(changed(config, start_from=str(source)), None)
    assert here.start_from_step == 3
    again = nnx.clone(model)
    kernel = leaf_paths(again)[path].get_value()
    again.id_encoder.visual_projection.kernel.set_value(kernel + 5)
    last = write_run(source, again, "photomaker", step=7)[path]
    anew = changed(here, start_from_step=0)
    found = [leaf_paths(open_system(c).model)[path].get_value() for c in (here, anew)]
    assert np.array_equal(found[0], first) and np.array_equal(found[1], last)
    assert not np.array_equal(first, last)
    # If no step is given, the run keeps the one that it started from.
    assert pin_start_step(anew, here.to_dict()).start_from_step == 3
    assert pin_start_step(changed(here, start_from_step=7), here.to_dict()).start_from_step == 7
    shutil.rmtree(source / "checkpoints" / "3")
    with pytest.raises(
        FileNotFoundError, match=r"start_from_step=3: .*there are 7.*restore a copy"
    ):
        open_system(here)


def test_a_run_saves_the_step_that_it_started_from(config, build, tmp_path, monkeypatch):
    source, workdir = tmp_path / "earlier", tmp_path / "run"
    write_run(source, build("photomaker").model, "photomaker", step=3)
    here = changed(config, start_from=str(source))

    def look(config, *_):
        raise InterruptedError(f"step {config.start_from_step}")

    monkeypatch.setattr(train, "open_system", look)
    with pytest.raises(InterruptedError, match="step 3"):
        train.train(here, workdir)
    settings = {**here.to_dict(), "start_from_step": 3}
    write_run(workdir, build("photomaker").model, **{**settings, "name": here.method})
    write_run(source, build("photomaker").model, "photomaker", step=7)
    with pytest.raises(InterruptedError, match="step 3"):
        train.train(here, workdir)
    with pytest.raises(ValueError, match="start_from_step: 3 -> 7"):
        train.train(changed(here, start_from_step=7), workdir)


def test_a_missing_start_is_refused(config, build, tmp_path):
    wanted = r"start_from=\S*nowhere: no such file or folder\. .*--workdir"
    with pytest.raises(MissingFile, match=f"^config.{wanted}"):
        started(config, "photomaker", tmp_path / "nowhere")
    source, gone = tmp_path / "earlier", str(tmp_path / "nowhere")
    write_run(source, build("photomaker").model, "photomaker", start_from=gone)
    with pytest.raises(MissingFile, match=f"^{source}: config.{wanted}"):
        started(config, "photomaker", source)
    write_run(source, build("photomaker").model, "photomaker", 1, start_from=str(source))
    with pytest.raises(ValueError, match="started from each other"):
        started(config, "photomaker", source)
