"""FaceCDM: both readings of its attention against NumPy, absent streams, stages, the ControlNet."""

import functools
import importlib
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import persongen_jax
from data_pipeline.examples.fields import Call, unflatten
from persongen_jax import train
from persongen_jax.diffusion.conditioning import TokenStream
from persongen_jax.models.attention import BasicTransformerBlock
from persongen_jax.models.branches import add_branch, branch_names
from persongen_jax.models.encoders.reduce_uplift import ReduceAndUplift
from persongen_jax.parallel.sharding import make_mesh, replicated
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.diffusion import drop_conditions
from persongen_jax.systems.open import open_system
from persongen_jax.training.partition import assign_groups, leaf_paths
from persongen_jax.training.trained import load_trained
from tests.helpers.training_runs import changed

RECOGNISER = str(Path(persongen_jax.__file__).parent / "assets" / "face_net" / "model.safetensors")
KW = {"dtype": jnp.float32, "param_dtype": jnp.float32}
HEADS, WIDTH, TEXT = 2, 16, 12


# ---- Triplet cross-attention ---------------------------------------------------------------------


@pytest.fixture
def block():
    made = BasicTransformerBlock(
        WIDTH, heads=HEADS, cross_attention_dim=TEXT, **KW, rngs=nnx.Rngs(0)
    )
    return made


def numpy_attention(q, tokens, mask, to_k, to_v):
    """softmax(Q K^T / sqrt(d)) V by heads, over the tokens that ``mask`` admits."""
    b, n, _ = q.shape
    k, v = tokens @ to_k, tokens @ to_v
    out = np.zeros_like(q)
    size = WIDTH // HEADS
    for row in range(b):
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            scores = q[row, :, part] @ k[row, mask[row], part].T / np.sqrt(size)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out[row, :, part] = weights @ v[row, mask[row], part]
    return out


def transcription(layer, x, streams, scales):
    """to_out(A(Q, K_text, V_text) + sum_b scale_b A(Q, K_b, V_b)), in float64."""

    def kernel(linear):
        return np.asarray(linear.kernel[...], np.float64)

    q = x @ kernel(layer.to_q)
    tokens, mask = streams["text"]
    total = numpy_attention(q, tokens, mask, kernel(layer.to_k), kernel(layer.to_v))
    for name, scale in scales.items():
        if name not in streams:
            continue
        tokens, mask = streams[name]
        branch = layer.branches[name]
        for row in np.flatnonzero(mask.any(1)):
            one = slice(row, row + 1)
            read = numpy_attention(
                q[one], tokens[one], mask[one], kernel(branch.to_k), kernel(branch.to_v)
            )
            total[one] += scale * read
    out = layer.to_out[0]
    return total @ kernel(out) + np.asarray(out.bias[...], np.float64)


READINGS = {"triplet": {"image": 0.8, "face": 1.3}, "joint": {"condition": 0.8}}


@pytest.mark.parametrize("missing", [None, "absent", "masked"])
@pytest.mark.parametrize("reading", READINGS)
def test_attention_is_its_transcription(reading, missing, block):
    scales, rng = READINGS[reading], np.random.default_rng(0)
    holder = nnx.Module()
    holder.block = block
    for name in scales:
        add_branch(holder, name)
    for name in scales:  # away from the base's, of which they are copies
        for linear in (block.attn2.branches[name].to_k, block.attn2.branches[name].to_v):
            linear.kernel.set_value(jnp.asarray(rng.normal(size=(TEXT, WIDTH)), jnp.float32))
    x = rng.normal(size=(3, 5, WIDTH))
    streams = {"text": (rng.normal(size=(3, 7, TEXT)), np.ones((3, 7), bool))}
    for name in scales:
        count = 8 if name == "condition" else 4
        mask = rng.random((3, count)) < 0.7
        mask[:, 0] = True
        mask[2] = False  # a person without references
        streams[name] = rng.normal(size=(3, count, TEXT)), mask
    last = list(scales)[-1]
    if missing == "absent":
        del streams[last]
    elif missing == "masked":
        streams[last] = streams[last][0], np.zeros_like(streams[last][1])
    ours = block.attn2(
        jnp.asarray(x, jnp.float32),
        {
            name: TokenStream(
                jnp.asarray(tokens, jnp.float32),
                None if name == "text" else jnp.asarray(mask),
                None if name == "text" else jnp.full(3, scales[name]),
            )
            for name, (tokens, mask) in streams.items()
        },
    )
    wanted = transcription(block.attn2, x, streams, scales)
    assert np.abs(ours - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_the_projection_is_its_transcription():
    from scipy.special import erf

    module = ReduceAndUplift(20, TEXT, num_tokens=4, reduced=6, **KW, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 3, 20))

    def linear(layer, x):
        return x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...])

    hidden = linear(module.reduce, x)
    hidden = linear(module.uplift, hidden * (1 + erf(hidden / np.sqrt(2))) / 2)
    hidden = hidden.reshape(2, 3, 4, TEXT)
    centred = hidden - hidden.mean(-1, keepdims=True)
    wanted = centred / np.sqrt(hidden.var(-1, keepdims=True) + 1e-5)
    assert np.abs(module(jnp.asarray(x, jnp.float32)) - wanted).max() < 1e-5


# ---- The method ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def facecdm(config):
    """A function that gives the system of a stage, with the miniature's own recogniser."""

    @functools.cache
    def make(stage, **changes):
        settings = {"method": "facecdm", "facecdm_stage": stage, "facecdm_reduced": 8}
        return open_system(changed(config, face_encoder=RECOGNISER, **{**settings, **changes}))

    return make


def make_batch(system, pose=True, photos=True):
    rng = np.random.default_rng(0)
    faces = list(rng.integers(0, 256, (2, 32, 32, 3), np.uint8))
    inputs = {}
    if photos:
        inputs["photographs"] = [list(rng.integers(0, 256, (2, 40, 32, 3), np.uint8))] * 2
    if pose:
        inputs["pose"] = list(rng.integers(0, 256, (2, 64, 64, 3), np.uint8))
    time_ids = np.array([[64, 64, 0, 0, 64, 64]] * 2, np.float32)
    call, batch = Call(["a woman"] * 2, {}, [[faces]] * 2, time_ids, (64, 64), inputs), {}
    for field in system.fields:
        batch |= field.given(call)
    return jax.tree.map(jnp.asarray, unflatten(batch))


@functools.partial(jax.jit, static_argnums=(0, 1))
def conditioned(system, graphdef, state, batch):
    return system.condition(nnx.merge(graphdef, state), batch)


def condition(system, batch):
    """What the UNet reads, compiled as a whole, which is faster than operation by operation."""
    return conditioned(system, *nnx.split(system.model.conditioner()), batch)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_a_stage_has_and_trains(stage, facecdm):
    system = facecdm(stage)
    names = {1: ["image"], 2: ["face", "image"], 3: ["face", "image"]}[stage]
    assert branch_names(system.model.unet) == names
    assert hasattr(system.model, "controlnet") == (stage == 3)
    groups = set(assign_groups(leaf_paths(system.model), system.table).values())
    assert groups == {"projections", "identity"} | ({"controlnet"} if stage == 3 else set())
    streams = condition(system, make_batch(system, pose=stage == 3)).streams
    assert set(streams) == {"text", *names}
    for name in names:  # two of at most four references, four tokens each
        assert streams[name].tokens.shape[:2] == (2, 16)
        assert streams[name].mask.sum() == 2 * 2 * 4


def test_joint_reads_all_tokens_by_one_branch(facecdm):
    system = facecdm(3, facecdm_attention="joint")
    assert branch_names(system.model.unet) == ["condition"]
    stream = condition(system, make_batch(system)).streams["condition"]
    assert stream.tokens.shape[:2] == (2, 32) and stream.mask.sum() == 2 * 2 * 8


def test_tokens_of_a_person_are_adjacent_as_regions_need_it(facecdm):
    """Two people read by one branch: its halves are what each of them alone gives."""
    system = facecdm(2, facecdm_attention="joint")
    faces, photos = np.random.default_rng(0).integers(0, 256, (2, 2, 1, 32, 32, 3), np.uint8)
    time_ids = np.array([[64, 64, 0, 0, 64, 64]], np.float32)

    def stream(people):
        own = [list(faces[i]) for i in people]
        inputs = {"photographs": [[list(photos[i]) for i in people]]}
        call, batch = Call(["two women"], {}, [own], time_ids, (64, 64), inputs), {}
        for field in system.fields:
            batch |= field.given(call)
        batch = jax.tree.map(jnp.asarray, unflatten(batch))
        return condition(system, batch).streams["condition"]

    both, alone = stream([0, 1]), [stream([0]), stream([1])]
    for part, one in zip(np.split(both.tokens, 2, axis=1), alone, strict=True):
        assert np.allclose(part, one.tokens, atol=1e-5)
    assert np.array_equal(both.mask, np.concatenate([one.mask for one in alone], axis=1))
    assert np.abs(alone[0].tokens - alone[1].tokens).max() > 0.1


def test_photographs_of_another_number_of_people_are_refused(facecdm):
    system = facecdm(2)
    faces = list(np.zeros((2, 32, 32, 3), np.uint8))
    inputs = {"photographs": [[faces[0]]]}
    call = Call(["two women"], {}, [[[face] for face in faces]], None, (64, 64), inputs)
    field = next(each for each in system.fields if each.name == "photographs")
    with pytest.raises(ValueError, match="prompt 1: of 1 people, references of 2"):
        field.given(call)


def test_a_dropped_condition_reads_zeros_before_the_projection(facecdm):
    system = facecdm(2)
    model, batch = system.model, make_batch(system)
    dropped = drop_conditions(system.fields, batch, jnp.array([True, False]))
    streams = condition(system, dropped).streams
    for name, projection in (("image", model.image_proj), ("face", model.face_proj)):
        width = projection.reduce.kernel.shape[0]
        nothing = projection(jnp.zeros((1, width)))[0]
        assert np.array_equal(streams[name].mask[0], np.arange(16) < 4)
        assert np.allclose(streams[name].tokens[0, :4], nothing, atol=1e-6)
        assert streams[name].mask[1].sum() == 8


def test_photographs_default_to_the_references_as_they_are(facecdm):
    system = facecdm(1)
    batch = make_batch(system, pose=False, photos=False)
    assert batch["image_mask"].sum() == 4 and np.abs(batch["image_pixel_values"]).max() > 1


@pytest.fixture(scope="module")
def denoised(facecdm):
    """A function from changes of the conditioning to the prediction of stage 3."""
    system = facecdm(3)
    model, rng = system.model, np.random.default_rng(1)
    for path, leaf in leaf_paths(model.controlnet).items():  # or all residuals are zero
        if path.startswith("controlnet_"):
            leaf.set_value(jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32))
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 4)), jnp.float32)
    t = jnp.array([10, 700])
    conditioning = condition(system, make_batch(system))

    def run(change=lambda c: c, method=system.method):
        return jax.jit(lambda c: method.denoise(model, x, t, c))(change(conditioning))

    def without(change=lambda c: c):
        return jax.jit(lambda c: model.unet(x, t, c))(change(conditioning))

    return system, run, without


def with_pose(pixels=None, scale=None):
    def change(conditioning):
        pose = conditioning.maps["pose"].pixels if pixels is None else pixels
        return conditioning.with_map("pose", pose, scale)

    return change


def test_the_pose_acts_and_its_absence_or_scale_0_adds_exactly_nothing(denoised):
    system, run, without = denoised
    black = jnp.zeros((2, 64, 64, 3))
    assert np.abs(run() - without()).max() > 0.01
    assert np.array_equal(run(with_pose(black)), without())
    assert np.array_equal(run(with_pose(scale=jnp.zeros(2))), without())
    # In a batch each image has its own.
    mixed = run(with_pose(jnp.stack([black[0], jnp.ones((64, 64, 3))])))
    assert np.array_equal(mixed[0], without()[0]) and np.abs(mixed[1] - without()[1]).max() > 0.01


@pytest.mark.slow
def test_the_controlnet_reads_the_tokens_and_not_the_text(denoised):
    system, run, _ = denoised
    model, method = system.model, system.method
    conditioning = condition(system, make_batch(system))
    read = [conditioning.streams[name] for name in ("image", "face")]
    tokens = jnp.concatenate([stream.tokens for stream in read], axis=1)
    mask = jnp.concatenate([stream.mask for stream in read], axis=1)

    def by_hand(x, t, conditioning):
        own = replace(conditioning, streams={"text": TokenStream(tokens, mask)}, maps={})
        residuals = model.controlnet(x, t, own, conditioning.maps["pose"].pixels)
        return model.unet(x, t, conditioning.with_residuals(residuals))

    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 8, 8, 4)), jnp.float32)
    both = x, jnp.array([10, 700]), conditioning
    ours = jax.jit(lambda *a: method.denoise(model, *a))(*both)
    assert np.allclose(ours, jax.jit(by_hand)(*both), atol=1e-5)


def test_scales_of_the_seeds_generation_are_the_defaults(denoised):
    system, _, _ = denoised
    assert dict(system.method.scales) == {"image": 0.8, "face": 0.8, "pose": 0.8}
    # A call that names none has them, and one that names one keeps the others.
    conditioner = Pipeline.from_system(system).conditioner
    for asked, wanted in (({}, 0.8), ({"face": 1.0}, 1.0)):
        found = conditioner.schedules(asked, lora=False, acts=True, num_steps=3)
        assert found["face"].tolist() == pytest.approx([wanted] * 3)
        assert found["pose"].tolist() == pytest.approx([0.8] * 3)
    early = conditioner.schedules({"pose": [(0, 0.3, 0.5)]}, lora=False, acts=True, num_steps=3)
    assert early["pose"].tolist() == pytest.approx([0.5, 0.8, 0.8])


@pytest.mark.slow
def test_fully_masked_tokens_and_no_pose_are_the_base_exactly(denoised):
    system, run, without = denoised

    def masked(conditioning):
        for name in ("image", "face"):
            stream = conditioning.streams[name]
            hidden = jnp.zeros_like(stream.mask)
            conditioning = conditioning.with_stream(name, stream.tokens, hidden)
        return with_pose(jnp.zeros((2, 64, 64, 3)))(conditioning)

    full = condition(system, make_batch(system))
    alone = replace(full, streams={"text": full.streams["text"]}, maps={})
    assert np.abs(run() - run(masked)).max() > 0.01
    assert np.array_equal(run(masked), without(lambda _: alone))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"facecdm_stage": 4}, "facecdm_stage=4: give 1, 2 or 3"),
        ({"facecdm_attention": "quartet"}, "give triplet or joint"),
        ({"face_encoder": ""}, "face_encoder is empty"),
        ({"control": "photographs", "facecdm_stage": 3}, "two inputs .* 'photographs'"),
    ],
)
def test_bad_settings_are_named(changes, named, config):
    settings = {"method": "facecdm", "facecdm_stage": 2, "face_encoder": RECOGNISER, **changes}
    with pytest.raises(ValueError, match=named):
        open_system(changed(config, **settings))


# ---- Stages --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_stages_start_from_each_other(config, tmp_path):
    """Two steps each: everything that one has trained is the next one's start."""
    data = "people:in_train?identities=4&pictures=3"
    common = {"method": "facecdm", "data": data, "facecdm_reduced": 8, "cpu_devices": 1}
    common |= {"face_encoder": RECOGNISER, "steps": 2, "warmup_steps": 0, "checkpoint_every": 2}
    before = ""
    for stage in (1, 2, 3):
        settings = {**common, "facecdm_stage": stage, "start_from": before}
        settings = changed(config, **settings)
        if before:
            trained, _ = load_trained(before, replicated(make_mesh()))
            leaves = leaf_paths(open_system(settings).model)
            assert trained.keys() <= leaves.keys()
            assert all(np.array_equal(leaves[p].get_value(), x) for p, x in trained.items())
        before = str(tmp_path / f"stage{stage}")
        assert train.train(settings, Path(before))
    trained, _ = load_trained(before, replicated(make_mesh()))
    parts = {path.split("/")[0] for path in trained}
    assert parts == {"image_proj", "face_proj", "unet", "controlnet"}
    # A run that ends after its first step and is continued ends with the same weights.
    assert train.train(changed(settings, steps=1), tmp_path / "resumed")
    assert train.train(settings, tmp_path / "resumed")
    resumed, _ = load_trained(tmp_path / "resumed", replicated(make_mesh()))
    assert all(np.array_equal(resumed[path], array) for path, array in trained.items())


def test_all_stages_of_both_sizes_are_configs_that_start_from_each_other():
    for folder in ("facecdm", "mini.facecdm"):
        for stage in (1, 2, 3):
            made = importlib.import_module(f"configs.{folder}.stage{stage}").get_config()
            assert (made.method, made.facecdm_stage) == ("facecdm", stage)
            here = folder.replace(".", "/")
            assert made.start_from == ("" if stage == 1 else f"runs/{here}/stage{stage - 1}")
