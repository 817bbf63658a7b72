"""Training on cached features: equal to training without, and only frozen outputs are cached."""

import errno
import functools
import json
import logging
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import persongen_jax
from data_pipeline.examples.fields import flatten
from data_pipeline.records import sources
from data_pipeline.records.manifest import write_manifest
from data_pipeline.records.schema import Record
from persongen_jax import train
from persongen_jax.features import __main__ as command
from persongen_jax.features import cache
from persongen_jax.features.cache import Features
from persongen_jax.features.store import FeatureTable
from persongen_jax.parallel.sharding import make_mesh
from persongen_jax.systems.assembly import assemble
from persongen_jax.systems.diffusion import drop_conditions
from persongen_jax.systems.open import open_system
from persongen_jax.systems.sdxl import Sdxl
from persongen_jax.systems.sdxl_fields import encode_moments
from persongen_jax.training.checkpoint import find_run
from persongen_jax.training.partition import leaf_paths, set_leaves
from persongen_jax.training.step import CompiledSteps, keys_of, merge_model
from persongen_jax.weights.files.safetensors_file import TensorFile
from tests.helpers.training_runs import changed, small_base, small_config

# float32: rows are encoded one at a time, and in the step all of a batch together.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
KINDS = ("moments", "text", "references")  # in the order of the fields
STEPS = 3
ASSETS = Path(persongen_jax.__file__).parent / "assets"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two people, seven images, three of them wide; these have a face box and a background."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    records = []
    for identity, count in (("anna", 2), ("bert", 5)):
        for i in range(count):
            path = folder / f"{identity}_{i}.png"
            size = (48, 80, 3) if i % 2 else (64, 64, 3)
            Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(path)
            record = Record(str(path), identity, f"a photo of a man img, view {i}")
            extra = {"background": "a beach", "face_box": (10, 12, 26, 31)} if i % 2 else {}
            records.append(Record(**{**vars(record), **extra}))
    write_manifest(folder, records)
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory, photos):
    config = small_config(small_base(tmp_path_factory), photos)
    config.method, config.random_crop, config.size = "photomaker_bg", False, 32
    config.face_loss_prob = config.drop_prob = 0.5
    # FaceCDM with both encoders, and without a ControlNet, which nothing encodes for.
    config.facecdm_stage, config.facecdm_reduced = 2, 8
    config.face_encoder = str(ASSETS / "face_net" / "model.safetensors")
    return config


@pytest.fixture(scope="module")
def build(config):
    """Maps a config to its system; the networks of each method are opened once."""

    @functools.cache
    def opened(method):
        return open_system(changed(config, method=method))

    def build(config):
        system = opened(config.method)
        return Sdxl(config, system.base, system.method)

    return build


@pytest.fixture(scope="module", params=["losses", pytest.param("steps", marks=pytest.mark.slow)])
def make_step(config, build, request):
    """A function to (initial state, frozen, jitted step); the step is made once per form.

    "losses": of the initial weights in every step, which compiles in a third of the time.
    """

    def losses_of(parts):
        system = parts.system

        @jax.jit
        def step(state, frozen, batch, number):
            model = merge_model(parts.graphdef, state.trainable, frozen)
            draws = system.draw(keys_of(config.seed, number), batch)
            return state, {"loss": system.losses(model, batch, draws)["loss"].mean()}

        return step

    @functools.cache
    def make(cached):
        parts = assemble(build(config), make_mesh())
        step = parts.step if request.param == "steps" else losses_of(parts)
        return parts.state, parts.frozen, step

    def begin(cached):
        state, frozen, step = make(cached)
        return jax.tree.map(jnp.copy, state), frozen, step

    return begin


def open_source(config, build, start=0):
    return build(config).examples(start)


def losses(config, build, make_step):
    state, frozen, step = make_step(bool(config.cache))
    found = []
    stream = open_source(config, build)
    for number in range(STEPS):
        batch = jax.tree.map(jnp.asarray, next(stream))
        state, metrics = step(state, frozen, batch, np.int32(number))
        found.append(float(metrics["loss"]))
    return np.array(found), stream.source


def rows(folder, kind=""):
    """The number of rows of a kind on disk."""
    total = 0
    for path in folder.glob(f"{kind}*/*.safetensors"):
        with TensorFile(path) as file:
            total += len(file.read("keys"))
    return total


def test_cache_on_against_off(config, build, make_step, tmp_path, monkeypatch):
    off, _ = losses(config, build, make_step)
    assert np.isfinite(off).all() and len(set(off)) == STEPS

    on = changed(config, cache=str(tmp_path / "lazy"))
    found, source = losses(on, build, make_step)
    assert np.allclose(found, off, **TOLERANCE)
    assert source.features.kinds == KINDS
    assert all(source.features.counts[f"{kind} computed"] > 0 for kind in KINDS)

    # All of it beforehand, by two processes: then nothing is computed and no image decoded.
    filled = changed(config, cache=str(tmp_path / "filled"))
    monkeypatch.setattr(command, "open_system", build)
    counts = [command.fill_cache(filled, worker, 2).counts for worker in range(2)]
    # 7 targets and references; 5 captions for up to 4 references, 2 for one; 2 backgrounds, one
    # of them the empty prompt.
    total = counts[0] + counts[1]
    assert total["moments computed"] == total["references computed"] == 7
    everything = command.fill_cache(filled)
    assert not everything.counts
    assert rows(tmp_path / "filled", "moments") == 7
    assert {len(c) for c in counts} == {3}

    def decode(name):
        raise AssertionError(f"{name} is decoded")

    monkeypatch.setattr(sources, "load_image", decode)
    found, source = losses(filled, build, make_step)
    assert np.allclose(found, off, **TOLERANCE)
    assert not [what for what in source.features.counts if "computed" in what]


def test_random_crops_are_computed_and_not_stored(config, build, tmp_path):
    config = changed(config, random_crop=True)
    on = changed(config, cache=str(tmp_path))
    plain, cached = (next(open_source(c, build)) for c in (config, on))
    wanted = encode_moments(build(config).model, plain["pixel_values"])["moments"]
    assert np.allclose(cached["moments"], wanted, **TOLERANCE)
    for name in ("time_ids", "face_box", "id_mask", "class_tokens_mask"):
        assert np.array_equal(cached[name], plain[name])
    source = open_source(on, build).source
    source.features.fill(map(source.feature_jobs, range(7)))
    # The wide ones are larger than the crop: 1 of anna's 2 images, 2 of bert's 5.
    assert source.features.counts["crops drawn again in every step, not stored"] == 3
    assert source.features.counts["moments computed"] == rows(tmp_path, "moments") == 4


@pytest.mark.parametrize(
    "name", ["photomaker_bg", pytest.param("id_branch", marks=pytest.mark.slow), "dual", "facecdm"]
)
def test_conditions_are_those_of_the_encoders(name, config, build, tmp_path):
    """With and without dropping, for a method of each way to read prompts and references."""
    config = changed(config, method=name)
    system = build(config)
    plain, cached = (
        next(open_source(c, build)) for c in (config, changed(config, cache=str(tmp_path)))
    )
    encoded = {"pixel_values", "id_pixel_values", "image_pixel_values", "input_ids"}
    assert not encoded & cached.keys()
    drop = jnp.array([True, False, False, True])
    graphdef, state = nnx.split(system.model.conditioner())

    @jax.jit
    def condition(state, batch):
        dropped = drop_conditions(system.fields, batch, drop)
        return system.condition(nnx.merge(graphdef, state), dropped)

    wanted, found = condition(state, plain), condition(state, cached)
    assert wanted.streams.keys() == found.streams.keys()
    for stream in wanted.streams:
        a, b = wanted.streams[stream], found.streams[stream]
        mask = np.ones(a.tokens.shape[:2], bool) if a.mask is None else np.asarray(a.mask)
        assert np.array_equal(mask, b.mask if b.mask is not None else mask)
        assert np.allclose(a.tokens[mask], b.tokens[mask], **TOLERANCE)
    assert np.allclose(wanted.pooled_prompt_embeds, found.pooled_prompt_embeds, **TOLERANCE)


def test_the_abstract_batch_is_the_real_one(config, build, tmp_path):
    for cached in (False, True):
        settings = changed(config, cache=str(tmp_path) if cached else "")
        found = flatten(next(open_source(settings, build)))
        wanted = flatten(build(settings).abstract_batch(cached))
        assert {n: (a.shape, a.dtype) for n, a in found.items()} == {
            n: (a.shape, a.dtype) for n, a in wanted.items()
        }
    wide = build(config).abstract_batch(True, shape=(48, 80))
    assert wide["moments"].shape == (4, 6, 10, 8)


def test_what_is_trained_is_not_cached(config, build, tmp_path):
    tower = (r"id_encoder/vision_model/.*", "id_encoder")
    rows_of_method = build(config).method.groups
    config = changed(config, trainable=(*rows_of_method, tower), cache=str(tmp_path))
    batch = next(open_source(config, build))
    assert "id_pixel_values" in batch and "moments" in batch and "text_states" in batch
    opened = str(open_source(config, build).source.features)
    assert "references not cached" in opened and "are trained" in opened
    assert build(config).abstract_batch(True).keys() == batch.keys()

    config = changed(config, trainable=(), cache_kinds=("text",))
    batch = next(open_source(config, build))
    assert "pixel_values" in batch and "text_states" in batch
    with pytest.raises(ValueError, match="latents"):
        open_source(changed(config, cache_kinds=("latents",)), build)


def test_other_weights_have_other_features(config, build, tmp_path):
    config = changed(config, method="id_branch", cache=str(tmp_path))
    system = build(config)
    model = system.model

    def names(**changes):
        made = (changed(config, **changes), model, system.fields, system.table, str)
        return {kind: encoder.name for kind, encoder in Features(*made)._encoders.items()}

    before = names()
    assert names(dtype="bfloat16")["moments"] == before["moments"]
    assert names(dtype="bfloat16")["text"] != before["text"]
    firsts = {
        "unet/conv_in/kernel": set(),
        "id_encoder/visual_projection/kernel": set(),
        "vae/decoder/conv_in/kernel": set(),
        "vae/encoder/conv_in/kernel": {"moments"},
        "text_encoder_2/text_projection/kernel": {"text"},
        "id_encoder/vision_model/post_layernorm/bias": {"references"},
    }
    for path, different in firsts.items():
        array = leaf_paths(model)[path].get_value()
        set_leaves(model, {path: array.at[(0,) * array.ndim].add(1e-3)})
        now = names()
        set_leaves(model, {path: array})
        assert {kind for kind in KINDS if now[kind] != before[kind]} == different, path
    assert names() == before
    # Methods that read the same networks in the same way share the cache.
    other = build(changed(config, method="dual"))
    signatures = [
        {f.encoding.kind: f.encoding.signature for f in s.fields if f.encoding}
        for s in (system, other)
    ]
    assert signatures[0] == signatures[1] and signatures[0].keys() == set(KINDS)


def test_a_changed_picture_and_a_damaged_file_are_computed_again(
    config, build, tmp_path, photos, caplog
):
    config = changed(config, cache=str(tmp_path))

    def fill():
        source = open_source(config, build).source
        source.features.fill(map(source.feature_jobs, range(7)))
        return source.features.counts

    fill()
    assert not fill()
    path = photos / "bert_4.png"
    before = path.read_bytes()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    again = fill()
    path.write_bytes(before)
    assert again == {"moments computed": 1, "references computed": 1}
    (table,) = tmp_path.glob("references-*")
    largest = max(table.iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert fill() == {"references computed": 7}
    assert str(largest) in caplog.text


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_does_not_stop_batches(config, build, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(FeatureTable.__init__, "__defaults__", (1,))  # part_bytes
    monkeypatch.setattr(FeatureTable, "flush", full)
    source = open_source(changed(config, cache=str(tmp_path)), build)
    with caplog.at_level(logging.WARNING):
        next(source)
    assert "no space left on the device" in caplog.text
    tables = source.source.features._tables.values()
    assert tables and not any(map(len, tables))  # nothing accumulates in memory
    # The command that only fills the cache reports it.
    with pytest.raises(OSError, match="No space left"):
        source.source.features.fill(map(source.source.feature_jobs, range(7)))


@pytest.mark.parametrize("seconds", [120, 0])
def test_a_pass_that_is_stopped_keeps_what_it_has_done(
    seconds, config, build, tmp_path, monkeypatch
):
    source = open_source(changed(config, cache=str(tmp_path)), build).source
    monkeypatch.setattr(cache, "FLUSH_SECONDS", seconds)
    there = []

    def jobs():
        for i in range(4):
            yield source.feature_jobs(i)
        there.append(rows(tmp_path))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source.features.fill(jobs(), batch_size=1)
    assert (there[0] > 0) == (seconds == 0)  # what would survive a kill
    assert rows(tmp_path, "moments") == 4


@pytest.mark.slow
@pytest.mark.parametrize("room", [True, False])
def test_four_steps_over_two_buckets(room, config, build, tmp_path, monkeypatch, capsys):
    """The whole trainer, on cached features: exactly one program per bucket."""
    if not room:  # for features; there is room for checkpoints
        monkeypatch.setattr(FeatureTable, "flush", full)
    monkeypatch.setattr(train, "open_system", lambda config, _: build(config))
    settings = changed(
        config,
        buckets=("32x32", "48x32"),
        cache=str(tmp_path / "cache"),
        steps=4,
        log_every=1,
        checkpoint_every=4,
        validation_every=0,
    )
    train.train(settings, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines)
    said = capsys.readouterr().out
    assert said.count("compiled the step") == 2 and "(2 of 2)" in said
    assert find_run(tmp_path / "run") == (tmp_path / "run", 4)


def test_a_batch_of_another_shape_is_refused():
    traced = []

    @jax.jit
    def step(state, frozen, batch, number):
        traced.append(batch["pixel_values"].shape)
        return state + batch["pixel_values"].sum(), {}

    specs = [{"pixel_values": ((32, width, 3), np.dtype(np.float32))} for width in (32, 48)]
    steps = CompiledSteps(step, specs)
    for height, width in ((32, 32), (32, 48), (32, 32), (32, 48)):
        batch = {"pixel_values": jnp.zeros((2, height, width, 3))}
        steps(jnp.zeros(()), {}, batch, np.int32(0))
    assert steps.compiled == steps.expected == 2 and len(traced) == 2
    with pytest.raises(ValueError, match=r"not declare: pixel_values \(48, 32, 3\)"):
        steps(jnp.zeros(()), {}, {"pixel_values": jnp.zeros((2, 48, 32, 3))}, np.int32(0))
    assert steps.compiled == 2


def test_the_command_says_what_is_missing(capsys):
    with pytest.raises(SystemExit, match="config.cache is empty"):
        command.main(["--config=configs/first_light.py"])
    with pytest.raises(SystemExit, match="^2$"):
        command.main([])
    assert "error: --config is missing" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="--worker 2"):
        command.main(
            ["--config=configs/first_light.py", "--config.cache=x", "--worker=2", "--workers=2"]
        )
