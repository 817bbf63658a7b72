"""PuLID as a method: what its tokens are made of, its losses on few-step samples, a run."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.drawing.people import examples
from data_pipeline.examples.fields import Call, unflatten
from data_pipeline.faces.align import align_faces
from persongen_jax import train
from persongen_jax.diffusion.plan import make_plan
from persongen_jax.diffusion.schedule import NoiseSchedule
from persongen_jax.methods import get_method
from persongen_jax.methods.base import Parts
from persongen_jax.methods.published.pulid import RELEASES
from persongen_jax.methods.published.pulid_losses import alignment, face_similarity_loss, few_steps
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.models.branches import transformer_blocks
from persongen_jax.models.faces.iresnet import normalise_faces
from persongen_jax.parallel.sharding import make_mesh, replicated
from persongen_jax.systems.diffusion import drop_conditions
from persongen_jax.systems.open import open_system
from persongen_jax.training.partition import assign_groups, leaf_paths
from persongen_jax.training.trained import load_trained
from persongen_jax.weights.formats.keypoint_net import load_keypoint_net
from persongen_jax.weights.formats.recognisers import open_recogniser
from persongen_jax.weights.random_base import SCHEDULER
from tests.helpers.training_runs import changed

RECOGNISER = str(ASSETS / "face_net" / "model.safetensors")
POINTS = str(ASSETS / "sdxl" / "face_detector")
SETTINGS = {"method": "pulid", "face_encoder": RECOGNISER, "pulid_crop": 32}


@pytest.fixture(scope="module")
def system(config):
    return open_system(changed(config, **SETTINGS))


def make_batch(system, references=2, people=1):
    faces = np.random.default_rng(0).integers(0, 256, (people, references, 32, 32, 3), np.uint8)
    time_ids = np.array([[64, 64, 0, 0, 64, 64]] * 2, np.float32)
    call = Call(["a woman"] * 2, {}, [[list(own) for own in faces]] * 2, time_ids, (64, 64))
    batch: dict = {}
    for field in system.fields:
        batch |= field.given(call)
    # In the place of what the recogniser reads, as with a cache.
    width = system.model.face_encoder.config["embedding_dim"]
    shape = (*batch["id_mask"].shape, width)
    batch["id_features"] = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    return jax.tree.map(jnp.asarray, unflatten(batch))


@functools.partial(jax.jit, static_argnums=(0, 1))
def tokens_of(method, graphdef, state, batch):
    return method.tokens(nnx.merge(graphdef, state), batch)


def tokens(system, batch):
    found = tokens_of(system.method, *nnx.split(system.model.conditioner()), batch)
    return tuple(np.asarray(each) for each in found)


def test_references_next_to_each_other_and_further_ones_in_part(system):
    found, mask = tokens(system, make_batch(system))
    assert found.shape[1] == 40
    assert mask[0].reshape(4, 10).sum(1).tolist() == [10, 5, 0, 0]
    assert mask[0].reshape(4, 10)[1].tolist() == [True] * 5 + [False] * 5
    one, _ = tokens(system, make_batch(system, references=1))
    assert np.allclose(one[:, :10], found[:, :10], atol=1e-5)
    both, mask = tokens(system, make_batch(system, people=2))
    assert mask.shape == (2, 80) and mask[0].sum() == 30
    assert np.allclose(both[0, :10], found[0, :10], atol=1e-5)


def test_without_the_condition_zeros_are_read_and_without_references_nothing(system):
    batch = make_batch(system)
    found, mask = tokens(system, batch)
    dropped, kept = tokens(system, drop_conditions(system.fields, batch, np.array([True, False])))
    assert np.array_equal(mask, kept) and np.allclose(dropped[1], found[1], atol=1e-5)
    model, width = system.model, found.shape[-1]
    encoder = model.id_adapter
    sizes = encoder.body[0].kernel.shape[0], encoder.mapping_0[0].kernel.shape[0]
    zeros = encoder(jnp.zeros((1, sizes[0])), (jnp.zeros((1, 3, sizes[1])),) * 5)
    assert zeros.shape == (1, 10, width) and np.abs(zeros).max() > 0
    assert np.allclose(dropped[0, :10], zeros[0], atol=1e-5)
    assert np.allclose(dropped[0, 10:15], zeros[0, :5], atol=1e-5)
    field = next(each for each in system.fields if each.name == "portraits")
    _, none = tokens(system, {**batch, **field.absent(batch, jnp)})
    assert not none.any()


def test_both_readers_get_as_many_pictures(system):
    face = np.zeros((32, 32, 3), np.uint8)
    for name in ("faces", "portraits"):
        field = next(each for each in system.fields if each.name == name)
        shape = np.zeros((1, 6), np.float32), (64, 64)
        call = Call(["a woman"], {}, [[[face]]], *shape, {name: [[face, face]]})
        with pytest.raises(ValueError, match=f"{name} of prompt 1: 2 for 1 references"):
            field.given(call)


def test_releases_and_bad_settings(config, system):
    branch = transformer_blocks(system.model.unet)[0].attn2.branches["identity"]
    assert (branch.mode, branch.zeros) == ("ortho_v2", 8)
    assert set(assign_groups(leaf_paths(system.model), system.table).values()) == {
        "projections",
        "identity",
    }
    assert {name: release.zeros for name, release in RELEASES.items()} == {
        **{"fidelity": 8, "style": 16},
        **{"v1.1": 20, "v1.1-lightning": 20},
    }
    for changes, named in (
        ({"face_encoder": ""}, "face_encoder is empty: PuLID reads"),
        ({"pulid_version": "v2"}, "pulid_version='v2': give v1 or v1.1"),
        ({"pulid_release": "v1.1"}, "of PuLID v1 there are fidelity, style"),
        ({"pulid_version": "v1.1", "pulid_id_mix": True}, "pulid_id_mix: PuLID v1.1 makes one"),
    ):
        with pytest.raises(ValueError, match=named):
            settings = changed(config, **{**SETTINGS, **changes})
            get_method("pulid").attach(Parts(None, None), settings, nnx.Rngs(0))
    for name in ("configs.pulid", "configs.mini.pulid"):
        made = importlib.import_module(name).get_config()
        assert made.method == "pulid" and made.validation_merge_step == -1


# ---- Losses --------------------------------------------------------------------------------------


def test_few_steps_are_the_schedules_own():
    plan = few_steps(NoiseSchedule.from_config(SCHEDULER), 4)
    wanted = make_plan(SCHEDULER, 4, "dpmpp_2m", timestep_spacing="trailing")
    assert np.array_equal(plan.timesteps, wanted.timesteps)
    for name, values in wanted.coefficients.items():
        np.testing.assert_allclose(plan.coefficients[name], values, rtol=2e-3)


def test_alignment_is_its_formula_and_the_other_side_is_constant():
    rng = np.random.default_rng(0)
    q, q0 = rng.normal(size=(2, 2, 6, 3, 4)).astype(np.float32)
    k, k0 = rng.normal(size=(2, 2, 5, 3, 4)).astype(np.float32)

    def responses(q, k):
        scores = np.einsum("bmhd,bnhd->bhmn", k, q) / 2
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        return np.einsum("bhmn,bnhd->bmhd", weights, q)

    def steps(*each):  # of a layer in two steps
        return [tuple(np.stack(pair) for pair in zip(*each, strict=True))]

    ours, theirs = steps((q, k), (q, k)), steps((q0, k0), (q, k))
    sem, layout = alignment(ours, theirs)
    wanted = ((responses(q, k) - responses(q0, k0)) ** 2).mean((1, 2, 3)) / 2
    np.testing.assert_allclose(sem, wanted, rtol=1e-5)
    np.testing.assert_allclose(layout, ((q - q0) ** 2).mean((1, 2, 3)) / 2, rtol=1e-5)
    flows = jax.grad(lambda other: sum(alignment(ours, [other])).sum())(theirs[0])
    assert not any(np.any(each) for each in flows)


@pytest.mark.slow
def test_a_face_that_is_the_persons_costs_least():
    """On drawn people, whose nets these are, against embeddings of the truly aligned faces."""
    people = examples("in_train", np.arange(8), np.arange(8), 64, 0)
    detector, recogniser = load_keypoint_net(POINTS), open_recogniser(RECOGNISER).model
    size = recogniser.config["input_size"]
    faces = align_faces(people.images, people.landmarks, size)
    wanted = nnx.jit(lambda net, x: net(x))(recogniser, normalise_faces(faces))
    images = jnp.asarray(people.images, jnp.float32) / 255

    @jax.jit
    def run(images, wanted):
        lost, found = face_similarity_loss(recogniser, detector, images, wanted)
        return lost.sum(), (lost, found)

    _, (own, found) = run(images, wanted)
    _, (other, _) = run(images, wanted[::-1])
    assert found.sum() >= 6 and np.mean(own[found]) < np.mean(other[found]) - 0.3
    gradient = np.asarray(jax.grad(lambda x: run(x, wanted)[0])(images))
    assert np.isfinite(gradient).all() and np.abs(gradient[np.asarray(found)]).max() > 0
    run = jax.jit(functools.partial(face_similarity_loss, recogniser, detector))
    lost, seen = run(images, wanted, np.arange(8) < 4)
    assert np.array_equal(seen, found & (np.arange(8) < 4)) and not np.any(lost[4:])
    lost, found = run(jnp.full_like(images, 0.5), wanted, np.ones(8, bool))
    assert not found.any() and not lost.any()  # who is not seen does not count


# ---- Runs ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1", "v1.1"])
def test_a_step_with_every_loss_moves_everything(version, config, tmp_path):
    settings = changed(
        config,
        **SETTINGS,
        **{"pulid_version": version, "pulid_few_steps": 2, "drop_prob": 0.0},
        **{"pulid_face_points": f"keypoints:{POINTS}", "cpu_devices": 1},
        **{"data": "people:in_train?identities=4&pictures=3&framing=portrait"},
        **{"steps": 1, "warmup_steps": 0, "checkpoint_every": 1, "log_every": 1},
    )
    assert train.train(settings, tmp_path)
    trained, _ = load_trained(tmp_path, replicated(make_mesh()))
    first = leaf_paths(open_system(settings).model)
    assert {path.split("/")[0] for path in trained} == {"id_adapter", "unet"}
    assert not [p for p, array in trained.items() if np.array_equal(first[p].get_value(), array)]
    log = (tmp_path / "metrics.jsonl").read_text()
    assert all(f"loss_{name}" in log for name in ("sem", "layout", "id"))
