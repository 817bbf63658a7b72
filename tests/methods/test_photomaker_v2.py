"""PhotoMaker v2: two tokens per reference, batches of people, what is refused, a run, its file."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import photomaker_v2
from configs.mini import photomaker_v2 as mini
from data_pipeline.examples.fields import Call, FieldError, unflatten
from data_pipeline.faces.face import Face
from persongen_jax import train
from persongen_jax.convert.exporting import export_run
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.parallel.sharding import make_mesh, replicated
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.open import open_run, open_system
from persongen_jax.training.optimizer import make_optimizer
from persongen_jax.training.partition import assign_groups, leaf_paths
from persongen_jax.training.trained import load_trained
from persongen_jax.weights.formats.photomaker import read_photomaker
from tests.helpers.photomaker_files import write_random_photomaker
from tests.helpers.training_runs import changed

RECOGNISER = str(ASSETS / "face_net" / "model.safetensors")
PROMPT = "a woman img in a red hat"


@pytest.fixture(scope="module")
def v2(config):
    return changed(config, method="photomaker_v2", face_encoder=RECOGNISER)


@pytest.fixture(scope="module")
def system(v2):
    """Its fuse module acts, as it does only after training."""
    system = open_system(v2)
    fuse = system.model.id_encoder.fuse_module
    for seed, mlp in enumerate((fuse.mlp1, fuse.mlp2)):
        kernel = mlp.fc2.kernel
        kernel.set_value(0.3 * jax.random.normal(jax.random.key(seed), kernel.shape))
    return system


def photos(count, seed=0):
    """Photographs of which the recogniser's output is known."""
    rng = np.random.default_rng(seed)
    return [
        Face(rng.integers(0, 256, (40, 50, 3), np.uint8), embedding=rng.normal(size=128))
        for _ in range(count)
    ]


def make_batch(system, people, **inputs):
    time_ids = np.array([[64, 64, 0, 0, 64, 64]] * len(people), np.float32)
    given = {name: [each] * len(people) for name, each in inputs.items()}
    call = Call([PROMPT] * len(people), {}, [[own] for own in people], time_ids, (64, 64), given)
    batch: dict = {}
    for field in system.fields:
        batch |= field.given(call)
    return batch


@functools.partial(jax.jit, static_argnums=(0, 1))
def _text(system, graphdef, state, batch):
    model = nnx.merge(graphdef, state)
    return system.condition(model, batch).streams["text"].tokens, model.encode_prompt(
        batch["input_ids"]["text"]
    )[0]


def text(system, batch):
    batch = jax.tree.map(jnp.asarray, unflatten(batch))
    return _text(system, *nnx.split(system.model.conditioner()), batch)


def test_each_example_of_a_batch_has_its_own_people(system):
    """The original takes one prompt; here rows differ in the person and in the number of images."""
    groups = assign_groups(leaf_paths(system.model), system.table)
    assert set(groups.values()) == {"projections", "fuse_module", "lora"}
    assert not any("visual_projection" in path for path in groups)
    for module in (photomaker_v2, mini):
        config = module.get_config()
        assert config.method == "photomaker_v2" and not config.trainable
        make_optimizer(config, groups)
    people = [photos(1), photos(3, seed=1), photos(3)]
    batch = make_batch(system, people)
    assert batch["class_tokens_mask"].sum(1).tolist() == [2, 6, 6]
    found, plain = text(system, batch)
    marked = batch["class_tokens_mask"]
    assert np.array_equal(found[~marked], plain[~marked])
    assert (np.abs(found - plain)[marked].max(-1) > 1e-3).all()
    # A row does not depend on the others; the third begins with the first's photograph.
    others, _ = text(system, make_batch(system, [people[2], people[0], people[1]]))
    np.testing.assert_allclose(found, np.asarray(others)[[1, 2, 0]], atol=1e-5)
    # Nobody is there: the prompt alone, whatever the arrays hold.
    nobody, plain = text(system, {**batch, "id_mask": np.zeros_like(batch["id_mask"])})
    assert np.array_equal(nobody, plain)


def test_photograph_and_embedding_both_count(system):
    (one, other), rows = photos(2), []
    for image, embedding in ((one, one), (one, other), (other, one)):
        rows.append([Face(image.image, embedding=embedding.embedding)])
    batch = make_batch(system, rows)
    found, _ = text(system, batch)
    places = np.asarray(found)[:, np.flatnonzero(batch["class_tokens_mask"][0])]
    gaps = [np.abs(places[0] - other).max() for other in places[1:]]
    assert min(gaps) > 1e-4


def test_what_does_not_go_together_is_named(system, config, tmp_path):
    square, wide = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 50, 3), np.uint8)
    with pytest.raises(FieldError, match=r"reference 2 of prompt 1: 50x40 .*locate_face"):
        make_batch(system, [[square, wide]])
    with pytest.raises(ValueError, match="photographs of prompt 1: 1 for 2 references"):
        make_batch(system, [photos(2)], photographs=[wide])
    with pytest.raises(FieldError, match=r"reference 1 of prompt 1: an embedding of shape \(5,\)"):
        make_batch(system, [[Face(wide, embedding=np.zeros(5))]])
    with pytest.raises(ValueError, match="face_encoder is empty: PhotoMaker v2 reads.*as encoder"):
        open_system(changed(config, method="photomaker_v2"))
    write_random_photomaker(config.base, tmp_path / "v1.safetensors")
    pipe = Pipeline.from_pretrained(config.base)
    with pytest.raises(ValueError, match=r"v1\.safetensors: is PhotoMaker v1, not one for"):
        pipe.load_method("photomaker_v2", tmp_path / "v1.safetensors", encoder=RECOGNISER)
    with pytest.raises(ValueError, match="shortcut=False: .* no such option; it has none"):
        pipe.load_method("photomaker", tmp_path / "v1.safetensors", options={"shortcut": False})


@pytest.mark.slow
def test_two_steps_move_everything_and_the_file_is_read_again(v2, tmp_path):
    rates = {f"lr_{group}": 1e-2 for group in ("projections", "fuse_module", "lora")}
    settings = changed(v2, steps=2, warmup_steps=1, log_every=1, drop_prob=0.0, **rates)
    train.train(changed(settings, checkpoint_every=2), tmp_path / "run")
    last = jax.tree.map(np.asarray, load_trained(tmp_path / "run", replicated(make_mesh()))[0])
    leaves = leaf_paths(open_system(v2).model)
    assert not [path for path in last if np.array_equal(leaves[path].get_value(), last[path])]

    run, path = open_run(tmp_path / "run"), tmp_path / "photomaker-v2.safetensors"
    assert export_run(run, path, "photomaker") == "PhotoMaker"
    with read_photomaker(path) as file:
        assert file.version == 2
    pipe = Pipeline.from_pretrained(v2.base)
    with pytest.raises(ValueError, match="as encoder"):
        pipe.load_method("photomaker", path)
    pipe.load_method("photomaker", path, encoder=RECOGNISER)
    found = leaf_paths(pipe.model)
    assert not [p for p in last if not np.array_equal(found[p].get_value(), last[p])]
