"""InstantID: tokens of several references and people, what its IdentityNet adds, runs, exports."""

import functools
import importlib
import math
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.faces.face import Face
from data_pipeline.pose.five_points import draw_kps
from persongen_jax import train
from persongen_jax.convert.exporting import export_run, unsupported_reason
from persongen_jax.diffusion.conditioning import Conditioning, ControlMap, Residuals, TokenStream
from persongen_jax.diffusion.control import WithControlNets
from persongen_jax.methods import get_method
from persongen_jax.methods.base import Parts
from persongen_jax.methods.published import instantid
from persongen_jax.methods.published.instantid import POINTS, InstantID
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.models.branches import branch_names
from persongen_jax.models.encoders.resampler import Resampler
from persongen_jax.parallel.sharding import make_mesh, replicated
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.diffusion import drop_conditions
from persongen_jax.systems.open import open_run, open_system
from persongen_jax.systems.sdxl import Sdxl
from persongen_jax.training.partition import assign_groups, leaf_paths
from persongen_jax.training.trained import load_trained
from tests.helpers.training_runs import changed

RECOGNISER = str(ASSETS / "face_net" / "model.safetensors")
WIDTH = 128  # of its embeddings
SETTINGS = {"method": "instantid", "face_encoder": RECOGNISER, "face_point_radius": 2}


@pytest.fixture(scope="module")
def system(config):
    return open_system(changed(config, **SETTINGS))


def make_batch(system, mask, seed=0):
    """What the frozen networks made, as a cache brings it; ``mask`` [b, people * 4]."""
    rng, mask = np.random.default_rng(seed), np.asarray(mask, bool)
    b, text = len(mask), system.model.unet.config["cross_attention_dim"][-1]
    pooled = system.model.text_encoder_2.config["hidden_size"]
    batch = {
        "id_features": rng.normal(size=(*mask.shape, WIDTH)),
        POINTS: rng.random((b, 64, 64, 3)),
        "text_states": {"text": rng.normal(size=(b, 7, text)), "pooled": np.zeros((b, pooled))},
        "time_ids": np.array([[64, 64, 0, 0, 64, 64]] * b),
    }
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batch) | {"id_mask": mask}


@functools.partial(jax.jit, static_argnums=(0, 1))
def conditioned(system, graphdef, state, batch):
    return system.condition(nnx.merge(graphdef, state), batch)


def condition(system, batch):
    return conditioned(system, *nnx.split(system.model.conditioner()), batch)


# ---- Tokens --------------------------------------------------------------------------------------


SMALL = {"heads": 1, "head_dim": 8, "num_layers": 1, "num_tokens": 3}


@pytest.fixture(scope="module")
def tokens():
    """(by hand, by the method, by it where they are dropped): maps embeddings to tokens."""
    kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    resampler = Resampler(5, 8, 6, **SMALL, **kw)
    methods = {several: InstantID() for several in ("mean", "sequence")}
    for several, method in methods.items():
        method.several = several

    @jax.jit
    def both(embeds, mask):
        return {several: m.tokens(resampler, embeds, mask) for several, m in methods.items()}

    @jax.jit
    def dropped(places):
        nobody, nothing = jnp.zeros_like(places), jnp.ones((*places.shape, 5))
        return methods["sequence"].tokens(resampler, nothing, nobody, places)

    return jax.jit(lambda embeds: resampler(embeds)), both, dropped


def test_several_references_are_their_mean_or_a_sequence(tokens):
    by_hand, both, _ = tokens
    embeds = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    mask = np.array([[1, 0, 1, 1], [0, 1, 0, 0]], bool)
    embeds[~mask] = 1e3  # what absent places hold does not matter
    found = both(embeds, mask)
    three, one = embeds[:1, [0, 2, 3]], embeds[1:, 1:2]
    wanted = {"mean": three.mean(1, keepdims=True), "sequence": three}
    for several, first in wanted.items():
        own, there = found[several]
        assert own.shape == (2, 3, 6) and there.all()
        np.testing.assert_allclose(own[:1], by_hand(first), atol=1e-5)
        np.testing.assert_allclose(own[1:], by_hand(one), atol=1e-5)
    assert np.abs(found["mean"][0][0] - found["sequence"][0][0]).max() > 0.01


def test_nobody_reads_a_zero_embedding_and_an_absent_person_nothing(tokens):
    by_hand, both, _ = tokens
    mask = np.array([[0] * 8, [0, 0, 0, 0, 0, 1, 0, 0]], bool)
    embeds = np.random.default_rng(0).normal(size=(2, 8, 5)).astype(np.float32)
    zero = by_hand(np.zeros((1, 1, 5), np.float32))
    for own, there in both(embeds, mask).values():
        np.testing.assert_allclose(own[:1], np.concatenate([zero, zero], axis=1), atol=1e-5)
        assert there.tolist() == [[True] * 6, [False] * 3 + [True] * 3]
        np.testing.assert_allclose(own[1:, 3:], by_hand(embeds[1:, 5:6]), atol=1e-5)


def test_a_dropped_sequence_is_one_of_as_many_zeros(tokens):
    by_hand, _, dropped = tokens
    found, there = dropped(np.array([[1, 0, 1, 1], [0, 0, 0, 0]], bool))
    three, one = (by_hand(np.zeros((1, n, 5), np.float32))[0] for n in (3, 1))
    np.testing.assert_allclose(found, [three, one], atol=1e-5)
    assert there.all() and np.abs(three - one).max() > 1e-3


def test_a_part_is_dropped_alone_and_the_points_stay():
    config = ConfigDict({**SETTINGS, "trigger_word": "img", "control_drop_prob": 0.0})
    config.update({"text_drop_prob": 0.1, "identity_drop_prob": 0.2})
    encoder = SimpleNamespace(config={"input_size": 40, "embedding_dim": WIDTH})
    parts = Parts(SimpleNamespace(face_encoder=encoder), None)
    fields = {each.name: each for each in InstantID().fields(parts, config)}
    assert (fields["text"].alone_drop_prob, fields["faces"].alone_drop_prob) == (0.1, 0.2)
    assert fields[POINTS].drop_prob == 0 and fields[POINTS].widths == (1, 2)
    states = dict.fromkeys(("text", "pooled"), jnp.ones((3, 4)))
    batch = {"id_mask": jnp.ones((3, 4), bool), POINTS: jnp.ones((3, 8, 8, 3))}
    batch["text_states"] = states | dict.fromkeys(("empty", "empty_pooled"), jnp.zeros((3, 4)))
    where = np.eye(3, dtype=bool)  # everything, the faces, the prompt
    own = {"faces": where[0] | where[1], "text": where[0] | where[2], POINTS: where[0] & False}
    found = drop_conditions(fields.values(), batch, where[0], own)
    assert found["id_mask"].any(1).tolist() == [False, False, True]
    assert found["text_states"]["text"].any(1).tolist() == [False, True, False]
    assert np.array_equal(found[POINTS], batch[POINTS])


@pytest.mark.slow
def test_what_it_has_and_trains(system):
    assert branch_names(system.model.unet) == ["identity"]
    groups = assign_groups(leaf_paths(system.model), system.table)
    assert set(groups.values()) == {"projections", "identity", "controlnet"}
    # In calls that do not say: its own strengths, from the first step.
    conditioner = Pipeline.from_system(system).conditioner
    found = conditioner.schedules({}, lora=False, acts=True, num_steps=2)
    assert {name: values.tolist() for name, values in found.items()} == {
        "identity": pytest.approx([0.8] * 2),
        POINTS: pytest.approx([0.8] * 2),
    }
    assert system.method.start_merge_step == -1 and conditioner.of_people == ("identity",)
    assert conditioner.inputs == ("faces", POINTS)


# ---- What the IdentityNet adds -------------------------------------------------------------------


def reading_net(x, t, conditioning, image, scale):
    """Stands for the IdentityNet: residuals that show what it was given."""
    ((name, read),) = conditioning.streams.items()
    assert name == "text" and not conditioning.maps and read.scale is None
    weights = read.mask / read.mask.sum(1, keepdims=True)
    value = (read.tokens * weights[..., None]).sum(1) + image.mean((1, 2, 3))[:, None]
    value = value * scale[:, None]
    shapes = (4, 4), (2, 2), (1, 1)
    each = [jnp.broadcast_to(value[:, None, None], (len(x), *s, value.shape[1])) for s in shapes]
    return Residuals(each[:-1], each[-1])


def added(tokens, mask, pixels, region=None, scale=1.0):
    b = len(tokens)
    scales = jnp.full(b, scale)
    streams = {"text": TokenStream(jnp.ones((b, 3, 2)))}
    streams["identity"] = TokenStream(tokens, mask, scales / 2, region)
    own = Conditioning(streams, maps={POINTS: ControlMap(pixels, scales)})
    read = jax.jit(lambda own: instantid._residuals(reading_net, jnp.zeros((b, 4, 4, 4)), 0, own))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(read(own))]


def test_it_reads_the_tokens_and_nothing_where_there_is_nobody_or_no_point():
    tokens = jnp.arange(3 * 2 * 2, dtype=jnp.float32).reshape(3, 2, 2) + 1
    mask = jnp.array([[True, True], [False, False], [True, False]])
    pixels = jnp.ones((3, 8, 8, 3)).at[2].set(0)
    for found in added(tokens, mask, pixels, scale=0.5):
        np.testing.assert_allclose(found[0], np.broadcast_to([1.5, 2.0], found[0].shape))
        assert np.array_equal(found[1:], np.zeros_like(found[1:]))


def test_each_person_acts_in_the_own_region_at_every_resolution():
    tokens = jnp.array([[[1.0, 2], [10, 20], [100, 200]]])  # a token each
    mask = jnp.array([[True, True, False]])
    region = np.zeros((1, 3, 4, 4), np.float32)
    region[0, 0, :, :2], region[0, 1, :, 2:], region[0, 2] = 1, 0.5, 1
    found = added(tokens, mask, jnp.ones((1, 8, 8, 3)), jnp.asarray(region))
    whole = (
        np.array([2.0, 3]) * region[0, 0, ..., None]
        + np.array([11.0, 21]) * region[0, 1, ..., None]
    )
    np.testing.assert_allclose(found[0][0], whole, rtol=1e-6)
    for other in found[1:]:  # averaged down
        wanted = jax.image.resize(whole, other[0].shape, "linear")
        np.testing.assert_allclose(other[0], wanted, rtol=1e-5)
    alone = added(tokens[:, :1], mask[:, :1], jnp.ones((1, 8, 8, 3)), jnp.asarray(region[:, :1]))
    np.testing.assert_allclose(alone[0][0], np.array([2.0, 3]) * region[0, 0, ..., None], rtol=1e-6)


def test_another_controlnet_reads_the_prompt_and_both_add_up():
    """In front of the method, as load_controlnet puts it; the UNet shows what is added to it."""
    b, tokens = 2, jnp.ones((2, 3, 2))

    def of_prompt(x, t, conditioning, image, scale, guess_mode):
        text = conditioning.streams["text"].tokens
        assert text.shape == (b, 5, 2)
        value = jnp.broadcast_to(text.sum(), (b, 1, 1, 2)) * scale[:, None, None, None]
        return Residuals([value, value], value)

    model = SimpleNamespace(
        unet=lambda x, t, conditioning: conditioning.residuals,
        controlnet=reading_net,
        controlnets=[of_prompt],
    )
    scales, image = jnp.full(b, 0.5), jnp.ones((b, 8, 8, 3))
    streams = {"text": TokenStream(jnp.ones((b, 5, 2))), "identity": TokenStream(tokens)}
    maps = {name: ControlMap(image, scales) for name in (POINTS, "controlnet")}
    own = Conditioning(streams, maps=maps)
    method = WithControlNets(InstantID(), ("controlnet",), guided=False)
    found = jax.jit(lambda own: method.denoise(model, jnp.zeros((b, 4, 4, 4)), 0, own))(own)
    for leaf in jax.tree.leaves(found):  # half of 20 and of what reading_net says
        np.testing.assert_allclose(leaf, 0.5 * 20 + 0.5 * 2)


@pytest.fixture(scope="module")
def whole(system):
    """(system, a function of a conditioning to the prediction, the same of the base alone)."""
    model, rng = system.model, np.random.default_rng(1)
    for path, leaf in leaf_paths(model.controlnet).items():  # or all residuals are zero
        if path.startswith("controlnet_"):
            leaf.set_value(jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32))
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 4)), jnp.float32)
    ours = jax.jit(lambda c: system.method.denoise(model, x, 500, c))
    base = jax.jit(lambda c: model.unet(x, 500, c))

    def plain(conditioning):
        return base(
            Conditioning(
                {"text": conditioning.streams["text"]},
                conditioning.pooled_prompt_embeds,
                conditioning.time_ids,
            )
        )

    return system, ours, plain


def with_stream(conditioning, **changes):
    streams = dict(conditioning.streams)
    streams["identity"] = replace(streams["identity"], **changes)
    return replace(conditioning, streams=streams)


@pytest.mark.slow
def test_absent_people_scale_0_and_empty_regions_are_the_base_exactly(whole):
    system, ours, plain = whole
    full = condition(system, make_batch(system, [[1, 1, 0, 0]] * 2))
    full = full.with_scales({"identity": 1.0, POINTS: 1.0})
    wanted, found = plain(full), ours(full)
    assert np.abs(found - wanted).max() > 0.01
    hidden = jnp.zeros_like(full.streams["identity"].mask)
    assert np.array_equal(ours(with_stream(full, mask=hidden)), wanted)
    assert np.array_equal(ours(full.with_scales({"identity": 0.0, POINTS: 0.0})), wanted)
    black = full.with_map(POINTS, jnp.zeros((2, 64, 64, 3)), jnp.ones(2))
    assert np.array_equal(ours(black.with_scales({"identity": 0.0})), wanted)
    assert np.abs(ours(black) - wanted).max() > 0.01  # the branch alone
    nowhere = jnp.zeros((2, 1, 8, 8))
    assert np.array_equal(ours(with_stream(full, region=nowhere)), wanted)
    everywhere = ours(with_stream(full, region=jnp.ones((2, 1, 8, 8))))
    np.testing.assert_allclose(everywhere, found, atol=1e-5)


# ---- Settings, runs, exports ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"instantid_references": "first"}, "instantid_references='first': give mean or sequence"),
        ({"face_encoder": ""}, "face_encoder is empty"),
    ],
)
def test_bad_settings_are_named(changes, named, config):
    settings = changed(config, **{**SETTINGS, **changes})
    with pytest.raises(ValueError, match=named):
        get_method("instantid").attach(Parts(None, None), settings, nnx.Rngs(0))


def test_configs_of_both_sizes_drop_as_the_training_code_does():
    for module in ("configs.instantid", "configs.mini.instantid"):
        made = importlib.import_module(module).get_config()
        assert made.method == "instantid" and made.validation_merge_step == -1
        drops = made.drop_prob, made.text_drop_prob, made.identity_drop_prob
        assert drops == (0.05, 0.05, 0.05)


@pytest.mark.slow
def test_its_full_size_has_the_published_counts():
    made = importlib.import_module("configs.instantid").get_config()
    system = Sdxl.abstract(made)
    counts = dict.fromkeys(("projections", "identity", "controlnet"), 0)
    leaves = leaf_paths(system.model)
    for path, group in assign_groups(leaves, system.table).items():
        counts[group] += math.prod(leaves[path].get_value().shape)
    found = {name: round(count / 1e6, 3) for name, count in counts.items()}
    assert found == {"projections": 81.979, "identity": 340.787, "controlnet": 1251.014}


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    settings = changed(
        config,
        **{**SETTINGS, "drop_prob": 0.1, "text_drop_prob": 0.2, "identity_drop_prob": 0.2},
        **{"data": "people:in_train?identities=4&pictures=3", "cpu_devices": 1, "steps": 2},
        **{"warmup_steps": 0, "checkpoint_every": 2, "log_every": 1, "id_norm_gain": 0.5},
    )
    settings = changed(
        settings, **{f"lr_{g}": 1e-2 for g in ("projections", "identity", "controlnet")}
    )
    folder = tmp_path_factory.mktemp("instantid") / "run"
    assert train.train(settings, folder)
    return settings, folder


def people_of(seed):
    rng = np.random.default_rng(seed)
    face = Face(embedding=rng.normal(size=WIDTH))
    points = np.array([(24.0, 20), (40, 20), (32, 32), (26, 42), (38, 42)]) + rng.normal(size=2)
    return [face], points


def sample(pipe, seeds, **settings):
    people, points = zip(*map(people_of, seeds), strict=True)
    pictures = [draw_kps(own, 64, 64) for own in points]
    usual = {"references": list(people), POINTS: pictures, "num_inference_steps": 2}
    usual |= {"output_type": "latent", "latents": latents(len(seeds)), "batch_size": 2}
    return pipe(["a woman"] * len(seeds), **{**usual, **settings}).images


def latents(count):
    first = np.random.default_rng(0).standard_normal((1, 8, 8, 4)).astype(np.float32)
    return np.repeat(first, count, axis=0)


@pytest.mark.slow
def test_a_run_moves_everything_and_its_files_are_it(run, config, tmp_path):
    settings, folder = run
    trained, _ = load_trained(folder, replicated(make_mesh()))
    first = leaf_paths(open_system(settings).model)
    assert {path.split("/")[0] for path in trained} == {"image_proj", "unet", "controlnet"}
    unmoved = {p for p, array in trained.items() if np.array_equal(first[p].get_value(), array)}
    # Behind zero convolutions two steps may move nothing.
    assert all(path.startswith("controlnet/") for path in unmoved)
    opened = open_run(folder)
    assert "no file of it" in unsupported_reason(opened, "ip-adapter")
    assert "reads tokens of the person" in unsupported_reason(opened, "controlnet")
    file = tmp_path / "ip-adapter.safetensors"
    said = export_run(opened, file, "instantid")
    assert said == "InstantID's adapter, and its IdentityNet next to it, in ip-adapter_controlnet"
    pipe = Pipeline.from_pretrained(config.base)
    with pytest.raises(ValueError, match="without its IdentityNet: give the folder"):
        pipe.load_method("instantid", file, encoder=RECOGNISER)
    assert pipe.method is None and not hasattr(pipe.model, "controlnet")
    with pytest.raises(ValueError, match="instantid has no 'rank'; it has instantid_references"):
        pipe.load_method(None, folder, options={"rank": 3})
    pipe.load_method(None, folder)
    wanted = sample(pipe, [1, 2])
    alone = [sample(pipe, [seed, seed])[0] for seed in (1, 2)]
    np.testing.assert_allclose(wanted, alone, atol=1e-4)  # a batch of prompts, each with its own
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-3
    # Two people in one picture, of which one has no place, are the other one.
    both = [[people_of(1)[0], people_of(2)[0]]]
    masks = np.ones((8, 8)), np.zeros((8, 8))
    with pytest.warns(UserWarning, match="region 2 of prompt 1 is empty"):
        one = sample(pipe, [1], references=both, regions=[list(masks)])
    np.testing.assert_allclose(one[0], wanted[0], atol=1e-4)
    pipe.unload_method()
    assert not hasattr(pipe.model, "controlnet") and not branch_names(pipe.model.unet)
    pipe.load_method(None, file, controlnet=tmp_path / "ip-adapter_controlnet", encoder=RECOGNISER)
    assert np.array_equal(sample(pipe, [1, 2]), wanted)
