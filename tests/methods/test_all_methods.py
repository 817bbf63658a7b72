"""The same tests for every method: its configs, streams, dropping, two training steps."""

import functools
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base as base_config
from configs import thesis
from data_pipeline.examples.fields import Call, unflatten
from persongen_jax import train
from persongen_jax.diffusion.conditioning import Conditioning, TokenStream
from persongen_jax.methods import METHODS
from persongen_jax.models.branches import branch_names
from persongen_jax.parallel.sharding import make_mesh, replicated
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.diffusion import drop_conditions
from persongen_jax.systems.sdxl import Sdxl
from persongen_jax.training.optimizer import make_optimizer
from persongen_jax.training.partition import assign_groups, leaf_paths, split_model
from persongen_jax.training.trained import load_trained
from persongen_jax.weights.formats.sdxl.loading import load_sdxl
from tests.helpers.training_runs import changed

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

each_method = pytest.mark.parametrize("name", STREAMS)


def each_but(*tested):
    """Every method; by default without these, of which their own files test the same."""
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=slow) if n in tested else n for n in STREAMS]
    )


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
    # The others have tests of their own.
    others = {"ip_adapter", "controlnet", "facecdm", "bolid", "photomaker_v2", "instantid", "pulid"}
    others |= {"lora", "dreambooth", "textual_inversion", "pivotal_tuning"}
    assert METHODS.keys() - others == STREAMS.keys() == GROUPS.keys()


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
    names = [name for name in names if not name.endswith("_and_encoders")]
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


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cascade", "photomaker_bg"])
def test_layers_of_the_encoders_are_there_at_full_size(method):
    module = importlib.import_module(f"configs.thesis.{method}_and_encoders")
    config = module.get_config()
    assert config.method == method
    system = Sdxl.abstract(config)
    groups = assign_groups(leaf_paths(system.model), system.table)
    make_optimizer(config, groups)
    layers = [f"{name}/layers/{n}" for name, n in (("text_encoder/encoder", 9), ("_2/encoder", 31))]
    layers.append("id_encoder/vision_model/encoder/layers/23")
    assert all(any(layer in path for path in groups) for layer in layers)
    assert not any("text_encoder/encoder/layers/11" in path for path in groups)


@each_but("photomaker_bg")
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


@each_but("photomaker", "photomaker_bg")
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


@each_but("photomaker", "photomaker_bg")
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
