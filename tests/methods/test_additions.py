"""What a method may add: networks in the step, maps, weights, loss terms; and detaching it."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import persongen_jax
from data_pipeline.records.manifest import write_manifest
from data_pipeline.records.schema import Record
from persongen_jax import train
from persongen_jax.evaluation.validation import open_evaluation
from persongen_jax.methods import METHODS, get_method
from persongen_jax.methods.base import Parts
from persongen_jax.parallel.sharding import make_mesh, put_batch
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.assembly import assemble
from persongen_jax.systems.open import open_system
from persongen_jax.systems.sdxl import Sdxl
from persongen_jax.training.checkpoint import Checkpoints
from persongen_jax.training.partition import leaf_paths, split_model
from persongen_jax.training.step import keys_of
from persongen_jax.weights.formats.sdxl.loading import load_sdxl
from tests.helpers.training_runs import changed, small_base, small_config

ASSETS = Path(persongen_jax.__file__).parent / "assets"
BARE, CONTROLLED = (f"tests.methods.additions:{name}" for name in ("Bare", "Controlled"))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Four images of one person, each with a pose; some weigh more than others."""
    folder, rng, records = tmp_path_factory.mktemp("poses"), np.random.default_rng(0), []
    for i in range(4):
        image, pose = folder / f"{i}.png", folder / f"pose_{i}.png"
        for path in (image, pose):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
        more = {"images": {"pose": str(pose)}, "extra": {"weight": [0, 1, 0.5, 3][i]}}
        records.append(Record(str(image), "anna", f"a woman, view {i}", **more))
    write_manifest(folder, records)
    config = small_config(small_base(tmp_path_factory), folder)
    config.size, config.lr_hint, config.face_loss_prob = 32, 1e-2, 0.0
    config.ema_decay, config.image_lora_rank = 0.0, 2
    config.face_encoder = str(ASSETS / "face_net" / "model.safetensors")
    return config


# ---- Detaching -----------------------------------------------------------------------


def kept(model):
    """The current (nnx graphdef, state): splitting shares arrays with the model."""
    graphdef, state = nnx.split(model)
    return graphdef, jax.tree.map(lambda array: np.array(array), state)


def same_model(before, model) -> bool:
    """Whether structure and arrays are those of ``before``, an (nnx graphdef, state)."""
    graphdef, state = nnx.split(model)
    return graphdef == before[0] and jax.tree.all(jax.tree.map(np.array_equal, before[1], state))


@pytest.fixture(scope="module")
def base(config):
    return load_sdxl(config.base)


@pytest.fixture(scope="module")
def pipe(config):
    return Pipeline.from_pretrained(config.base)


@pytest.mark.parametrize("name", [*METHODS, CONTROLLED])
def test_detaching_restores_the_model(name, config, base, pipe, tmp_path):
    settings = changed(config, method=name, token="<me>")
    before, model = kept(base.model), base.model
    leaves = jax.tree.leaves(nnx.state(model))
    method, parts = get_method(name), Parts(model, base.tokenizers)
    method.attach(parts, settings, nnx.Rngs(0))
    assert (nnx.graphdef(model) != before[0]) == (name != "dreambooth")  # which adds nothing
    trained = {path: x + 1 for path, x in split_model(model, method.groups)[1].items()}
    method.detach(parts)
    assert same_model(before, model)
    # No array was copied.
    assert all(a is b for a, b in zip(leaves, jax.tree.leaves(nnx.state(model)), strict=True))

    # The same through the pipeline, with a run's trained weights.
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, trained, {"count": np.zeros(1)}, json.loads(settings.to_json()))
    before = kept(pipe.model)
    pipe.load_method(None, tmp_path)
    assert not same_model(before, pipe.model) and type(pipe.method) is type(method)
    pipe.unload_method()
    assert same_model(before, pipe.model)
    assert pipe.method is None and pipe.streams == ("text",) and not pipe.adapters


# ---- A second network and a map ----------------------------------------------------------------


@pytest.fixture(scope="module")
def controlled(config, tmp_path_factory):
    """(the folder of a run of one step, the system as it began)."""
    settings = changed(config, method=CONTROLLED, steps=1, warmup_steps=0, log_every=1)
    workdir = tmp_path_factory.mktemp("controlled")
    assert train.train(settings, workdir)
    return workdir, open_system(settings)


def test_a_second_network_is_trained_and_its_map_acts(controlled):
    workdir, system = controlled
    pipe = Pipeline.from_pretrained(system.config.base)
    pipe.load_method(None, workdir)
    names = ("kernel", "bias")
    before, after = (
        [np.asarray(getattr(model.hint, name)[...]) for name in names]
        for model in (system.model, pipe.model)
    )
    assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))

    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)

    def generate(pose, **settings):
        settings = {"height": 32, "width": 32, "num_inference_steps": 2, **settings}
        return pipe("a woman", pose=[pose], output_type="latent", **settings).images

    whole = generate(first)
    assert np.abs(generate(second) - whole).max() > 1e-3
    assert np.array_equal(generate(first, scales={"pose": 1.0}), whole)
    assert np.array_equal(*(generate(pose, scales={"pose": 0.0}) for pose in (first, second)))


# ---- Terms and weights -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(config):
    return open_system(changed(config, method=BARE, seed=1))


@pytest.fixture(scope="module")
def batch(bare):
    """As from a feature cache, so that neither VAE nor text towers run."""
    return {**bare.random_batch(cached=True), "example_weight": jnp.array([0, 1, 0.5, 3])}


@pytest.fixture(scope="module")
def losses(bare):
    """Maps a batch to the terms [b] of step 0."""
    graphdef, state = nnx.split(bare.model)
    keys = keys_of(bare.config.seed, 0)

    @jax.jit
    def losses(state, batch):
        return bare.losses(nnx.merge(graphdef, state), batch, bare.draw(keys, batch))

    return lambda batch: losses(state, batch)


NAMES = {"loss", "far", "late", "face_box_fallbacks"}


def test_further_terms_are_means_in_however_many_parts(bare, batch, losses):
    mesh, found, wanted = make_mesh(), {}, losses(batch)
    assert wanted.keys() == NAMES and all(x.shape == (4,) for x in wanted.values())
    assert 0 < wanted["late"].mean() < 1 and wanted["far"].min() > 0
    for parts in (1, 2, 4):
        system = Sdxl(changed(bare.config, grad_accum=parts), bare.base, bare.method)
        made = assemble(system, mesh)
        with jax.set_mesh(mesh):
            arguments = put_batch(mesh, batch), np.int32(0)
            _, found[parts] = made.step(made.state, made.frozen, *arguments)
    for metrics in found.values():
        assert metrics.keys() == NAMES | {"grad_norm", "skipped"}
        for name in NAMES:
            assert np.isclose(metrics[name], wanted[name].mean(), rtol=1e-5), name
        assert np.isclose(metrics["grad_norm"], found[1]["grad_norm"], rtol=1e-5)


def test_the_weight_of_an_example_multiplies_its_loss(batch, losses):
    weighted = losses(batch)
    plain = losses({**batch, "example_weight": jnp.ones(4)})
    assert np.allclose(weighted.pop("loss"), batch["example_weight"] * plain.pop("loss"))
    assert weighted.keys() == NAMES - {"loss"}
    assert all(np.allclose(x, plain[name], rtol=1e-6) for name, x in weighted.items())


def test_weights_and_poses_come_from_the_manifest(bare):
    example = next(bare.examples(0))
    assert sorted(example["example_weight"].tolist()) == [0, 0.5, 1, 3]
    assert example["pose"].shape == (4, 32, 32, 3)
    assert 0 <= example["pose"].min() < 0.1 and 0.9 < example["pose"].max() <= 1


# ---- What a run trains of the base, validation with a map, equality ----------------------------


def test_layers_of_the_base_that_a_run_trained_come_back(config, tmp_path):
    """Layers that the method's own table does not name."""
    layer = r"unet/mid_block/attentions/0/transformer_blocks/0/attn2/to_k/kernel"
    trainable = (*get_method("photomaker").groups, (layer, "lora"))
    own = changed(config, method="photomaker", trainable=trainable)
    system = open_system(own)
    parts = assemble(system, make_mesh())
    arrays = {path: array + 1 for path, array in parts.state.trainable.items()}
    settings = json.loads(own.to_json())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, arrays, parts.state.opt_state, settings)
    checkpoints.close()

    pipe = Pipeline.from_pretrained(config.base)
    before = kept(pipe.model)
    pipe.load_method(None, tmp_path)
    there = leaf_paths(pipe.model)[layer].get_value()
    assert np.array_equal(there, arrays[layer])
    pipe.unload_method()
    assert not np.array_equal(there, leaf_paths(pipe.model)[layer].get_value())
    assert same_model(before, pipe.model)


def test_a_validation_gives_a_method_the_pose_of_the_record(config, monkeypatch):
    own = changed(config, method=BARE, validate_in_train=config.data, validation_people=1)
    own = changed(own, validation_steps=1, validation_images=1, clip="", face_net="")
    system, given = open_system(own), []
    call = Pipeline.__call__

    def spy(pipe, *args, **options):
        given.append(options["pose"])
        return call(pipe, *args, **options)

    monkeypatch.setattr(Pipeline, "__call__", spy)
    images = open_evaluation(system)(system.model, 0)["in_train"].images
    assert images.shape[:2] == (1, 4)
    pose = np.asarray(Image.open(f"{config.data}/pose_0.png"))
    assert all(np.array_equal(each, pose) for poses in given for each in poses)


def test_methods_that_keep_arrays_are_equal_to_themselves_alone():
    one, other = get_method("photomaker"), get_method("photomaker")
    assert one == other and hash(one) == hash(other)
    one.ids, other.ids = np.zeros(2), np.zeros(2)
    assert one == one and one != other
