"""The same tests for every method: its configs, streams, initial weights, two training steps."""

import functools
import importlib
import pkgutil
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base as base_config
from configs import thesis
from data_pipeline.examples.fields import Call, unflatten
from persongen_jax import train
from persongen_jax.config import VERSION
from persongen_jax.diffusion.conditioning import Conditioning, TokenStream
from persongen_jax.methods import METHODS
from persongen_jax.methods.start import pin_start_step
from persongen_jax.models.branches import Composition, branch_names
from persongen_jax.models.lora import lora_layers
from persongen_jax.parallel.sharding import make_mesh, replicated
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.diffusion import drop_conditions
from persongen_jax.systems.open import open_system
from persongen_jax.training.checkpoint import Checkpoints
from persongen_jax.training.optimizer import make_optimizer
from persongen_jax.training.partition import assign_groups, leaf_paths, split_model
from persongen_jax.training.trained import load_trained
from persongen_jax.weights.errors import KeyMismatch, MissingFile
from persongen_jax.weights.formats.photomaker import save_photomaker
from persongen_jax.weights.formats.sdxl.loading import load_sdxl
from tests.helpers.training_runs import changed, small_base, small_config

PROMPT, SCENE, CLOTHES = "a woman img in a red hat", "a beach, two boats", "she wears a coat"
PLAIN = "a woman in a red hat"
# methods.md: the streams other than "text", and the trained groups.
STREAMS = {
    "photomaker": "",
    "id_branch": "identity",
    "dual": "identity",
    "ip_lora": "identity",
    "photomaker_bg": "background",
    "photomaker_bg_body": "background body",
    "cascade": "background body identity",
}
GROUPS = {
    "photomaker": "projections fuse_module lora",
    "id_branch": "projections id_norm identity",
    "dual": "projections id_norm identity fuse_module",
    "ip_lora": "projections id_norm lora",
    "photomaker_bg": "projections fuse_module lora background",
    "photomaker_bg_body": "projections fuse_module lora background body",
    "cascade": "projections id_norm background body identity",
}
# If the identity enters at the class word, a prompt must mark it.
AT_TRIGGER = {"photomaker", "dual", "photomaker_bg", "photomaker_bg_body"}
BRANCHED = [name for name, streams in STREAMS.items() if "identity" in streams]
TOWER = 3  # difference between the file's image tower and the base's
each_method = pytest.mark.parametrize("name", STREAMS)


@pytest.fixture(scope="module")
def config(tmp_path_factory, sample_photos):
    config = small_config(small_base(tmp_path_factory), sample_photos)
    config.ema_decay = 0.0
    return config


@pytest.fixture(scope="module")
def build(config):
    """Maps name to the system with this method, each opened once."""

    @functools.cache
    def build(name):
        return open_system(changed(config, method=name))

    return build


def text_field(system):
    return next(field for field in system.fields if field.name == "text")


def make_batch(system, references=2):
    """The same prompts and references twice, from the system's own fields."""
    size = (references, 32, 32, 3)
    faces = list(np.random.default_rng(0).integers(0, 256, size, np.uint8))
    parts = {"background": [SCENE] * 2, "body": [CLOTHES] * 2}
    time_ids = np.array([[64, 64, 0, 0, 64, 64]] * 2, np.float32)
    call, batch = Call([PROMPT] * 2, parts, [[faces]] * 2, time_ids, (64, 64)), {}
    for field in system.fields:
        batch |= field.given(call)
    return jax.tree.map(jnp.asarray, unflatten(batch))


def test_the_table_of_methods():
    # Beside them only IP-Adapter's published variants, which have tests of their own.
    assert METHODS.keys() - {"ip_adapter"} == STREAMS.keys() == GROUPS.keys()


@each_method
def test_every_group_has_its_rate_in_both_configs(name, build):
    system = build(name)
    groups = assign_groups(leaf_paths(system.model), system.table)
    assert set(groups.values()) == set(GROUPS[name].split())
    full = "configs.base" if name == "photomaker" else f"configs.{name}"
    for module in (full, f"configs.mini.{name}"):
        config = importlib.import_module(module).get_config()
        assert config.method == name and not config.trainable
        make_optimizer(config, groups)
        if module == full:
            rates = {group: config[f"lr_{group}"] for group in groups.values()}
            assert rates == {g: 1e-4 if g == "id_norm" else 1e-5 for g in rates}


def test_the_experiments_differ_from_the_baseline_by_keys_that_work(build):
    model = build("photomaker").model
    names = [module.name for module in pkgutil.iter_modules(thesis.__path__)]
    whole_encoder = ["whole_encoder", "whole_encoder_and_lora", "whole_encoder_from_photomaker"]
    whole_encoder.append("stock_sdxl_whole_encoder")
    others = [
        "fuse_module",
        "fuse_module_and_lora",
        "from_photomaker",
        "from_photomaker_with_warmup",
    ]
    stages = ("fuse_module", "lora_rank_1", "lora_in_stages", "lora_rank_16")
    others += [f"stock_sdxl_{stage}" for stage in stages]
    assert sorted(names) == sorted(whole_encoder + others)
    defaults = base_config.get_config()
    for name in names:
        config = importlib.import_module(f"configs.thesis.{name}").get_config()
        assert config.keys() == defaults.keys()
        groups = assign_groups(leaf_paths(model), config.trainable)
        make_optimizer(config, groups)
        assert ("id_encoder" in groups.values()) == (name in whole_encoder)


@each_method
def test_the_streams_and_what_they_hold(name, build):
    system = build(name)
    model, encode = system.model, system.base.tokenizers.encode
    batch = make_batch(system)
    assert set(batch["input_ids"]) == {"text"} | set(STREAMS[name].split()) - {"identity"}
    streams = system.condition(model, batch).streams
    assert set(streams) - {"text"} == set(STREAMS[name].split())
    assert branch_names(model.unet) == sorted(STREAMS[name].split())
    for stream, text in (("background", SCENE), ("body", CLOTHES)):
        if stream in streams:
            ids = jnp.asarray(np.stack([encode(text)] * 2))
            assert np.array_equal(streams[stream].tokens, model.encode_prompt(ids)[0])
    if "identity" in streams:
        identity = streams["identity"]
        assert identity.tokens.shape == (2, 4, streams["text"].tokens.shape[2])
        assert np.array_equal(identity.mask, batch["id_mask"])
        assert np.allclose(identity.tokens.mean(-1), 0, atol=1e-5)  # it is normalised
        assert not np.allclose(identity.tokens[0, 0], identity.tokens[0, 1])
    assert ("class_tokens_mask" in batch) == (name in AT_TRIGGER)
    if name not in AT_TRIGGER:
        ids = jnp.asarray(np.stack([encode(PLAIN)] * 2))
        assert np.array_equal(streams["text"].tokens, model.encode_prompt(ids)[0])


@each_method
def test_dropping_takes_the_identity_and_all_prompts_out(name, build):
    system = build(name)
    batch, model = make_batch(system), system.model
    empty = system.base.tokenizers.encode("")
    dropped = drop_conditions(system.fields, batch, jnp.array([True, True]))
    other = {**dropped, "id_pixel_values": dropped["id_pixel_values"] + 1}
    first, second = (system.condition(model, b).streams for b in (dropped, other))
    wanted = model.encode_prompt(jnp.asarray(np.stack([empty] * 2)))[0]
    for stream in set(first) - {"identity"}:
        assert np.array_equal(first[stream].tokens, wanted)
        assert np.array_equal(first[stream].tokens, second[stream].tokens)
    if "identity" in first:
        assert not first["identity"].mask.any()


@each_method
def test_at_the_start_it_is_the_base_for_text_alone(name, build, config):
    """Bit for bit; with every other stream absent, or with the identity masked out."""
    system = build(name)
    plain = plain_base(config.base).model
    ids = jnp.asarray(np.stack([system.base.tokenizers.encode("a man")] * 2))
    embeds, pooled = plain.encode_prompt(ids)
    time_ids = jnp.asarray([[64.0, 64, 0, 0, 64, 64]] * 2)
    conditioning = Conditioning({"text": TokenStream(embeds)}, pooled, time_ids)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    wanted = plain.unet(x, 500, conditioning)
    assert np.array_equal(system.model.unet(x, 500, conditioning), wanted)
    tokens, one = jnp.ones((2, 4, embeds.shape[2])), jnp.ones(2)
    masked = conditioning.with_stream("identity", tokens, jnp.zeros((2, 4), bool), one)
    assert np.array_equal(system.model.unet(x, 500, masked), wanted)
    there = conditioning.with_stream("identity", tokens, jnp.ones((2, 4), bool), one)
    changes = not np.array_equal(system.model.unet(x, 500, there), wanted)
    # The cascade's added layers start at zero.
    assert changes == (name in BRANCHED and name != "cascade")


@functools.cache
def plain_base(path):
    return load_sdxl(path)


@each_method
def test_the_class_token_stands_once_per_reference_only_in_text_space(name, build):
    text = text_field(build(name))
    tokenizers = text.tokenizers
    for count in (1, 2, 3, 4):
        ids, mask, plain = text.read(PROMPT, count)
        assert plain == PLAIN and mask.sum() == (count if name in AT_TRIGGER else 0)
        wanted = tokenizers.encode(PLAIN)
        if name in AT_TRIGGER:
            wanted = tokenizers.encode_with_trigger(PROMPT, count)[0]
        assert np.array_equal(ids, wanted)


# ---- What a method starts from -----------------------------------------------------------------


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
    config, build, photomaker_file
):
    model, fresh = started(config, "dual", photomaker_file), build("dual").model
    encoder, own = model.id_encoder, model.id_tokens.visual_projection_3.kernel[...]
    heads = (encoder.visual_projection, encoder.visual_projection_2)
    assert np.array_equal(own, np.concatenate([head.kernel[...] for head in heads], axis=1))
    first = fresh.id_encoder.visual_projection.kernel[...]
    assert np.allclose(encoder.visual_projection.kernel[...], first + 1)
    assert not lora_layers(model.unet)


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


@pytest.mark.parametrize("extra_rank", [0, 1])
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


# ---- Training ----------------------------------------------------------------------------------


# The cascade has every part of the others except LoRA and the fuse module; PhotoMaker's runs are
# tested elsewhere.
@pytest.mark.parametrize(
    "name",
    [name if name == "cascade" else pytest.param(name, marks=pytest.mark.slow) for name in STREAMS],
)
def test_two_steps_move_everything_and_the_run_can_be_loaded(name, config, build, tmp_path):
    settings = changed(config, method=name, steps=2, warmup_steps=1, log_every=1, drop_prob=0.0)
    # After the cascade's zeros gradients start small, and Adam's epsilon hides smaller ones.
    rates = {f"lr_{group}": 1e-2 for group in GROUPS[name].split()}
    settings = changed(settings, checkpoint_every=2, **rates)
    train.train(settings, tmp_path)
    system = build(name)
    first = split_model(system.model, system.table)[1]
    last = jax.tree.map(np.asarray, load_trained(tmp_path, replicated(make_mesh()))[0])
    assert first.keys() == last.keys()
    assert not [path for path in first if np.array_equal(first[path], last[path])]
    pipe = Pipeline.from_pretrained(config.base)
    pipe.load_method(None, tmp_path)
    leaves = leaf_paths(pipe.model)
    assert not [p for p in last if not np.array_equal(leaves[p].get_value(), last[p])]
    assert pipe.streams == text_field(system).streams
    assert ("method:" + name in pipe.adapters) == ("lora" in GROUPS[name])
