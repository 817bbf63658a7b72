"""PhotoMaker with a background branch: what it trains, from a training run to an image."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from configs import photomaker_bg
from configs.first_light import get_config as first_light
from configs.first_light_bg import get_config
from data_pipeline.examples.fields import Call
from persongen_jax import train
from persongen_jax.cli import plain_warnings
from persongen_jax.diffusion.conditioning import Conditioning
from persongen_jax.generate import __main__ as generate
from persongen_jax.models.branches import ParallelCrossAttention, branch_names
from persongen_jax.models.lora import lora_layers
from persongen_jax.parallel.sharding import make_mesh, replicated
from persongen_jax.pipeline import Pipeline, conditioner
from persongen_jax.pipeline.images import sample_steps
from persongen_jax.systems.diffusion import drop_conditions
from persongen_jax.systems.open import open_system
from persongen_jax.training.checkpoint import Checkpoints
from persongen_jax.training.optimizer import make_optimizer
from persongen_jax.training.partition import split_model
from persongen_jax.training.trained import load_trained
from tests.evaluation.tiny import moved
from tests.helpers.training_runs import small_base

PROMPT, SCENE = "a woman img in a red hat", "a beach, two boats"


def configured(get_config, base, **changes):
    config = get_config()
    config.base = str(base)
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_base(tmp_path_factory)


@pytest.fixture(scope="module")
def built(small):
    return open_system(configured(get_config, small))


def make_batch(base, background=SCENE, b=2):
    ids, mask, _ = base.tokenizers.encode_with_trigger(PROMPT, 2)
    pixels = np.random.default_rng(0).standard_normal((b, 4, 32, 32, 3)).astype(np.float32)
    batch = {
        "input_ids": {
            "text": np.stack([ids] * b),
            "background": np.stack([base.tokenizers.encode(background)] * b),
        },
        "class_tokens_mask": np.stack([mask] * b),
        "id_pixel_values": pixels,
        "id_mask": np.array([[True, True, False, False]] * b),
        "time_ids": np.array([[64, 64, 0, 0, 64, 64]] * b, np.float32),
    }
    return jax.tree.map(jnp.asarray, batch)


def condition(system, batch) -> Conditioning:
    """Compiled, as everywhere else."""
    view = system.model.conditioner()
    return conditioner._condition(system.method, *nnx.split(view), batch)


def encode(base, text):
    """prompt_embeds [2, 77, d] of a text twice."""
    ids = np.stack([base.tokenizers.encode(text)] * 2)
    return conditioner._encode_prompt(*nnx.split(base.model.conditioner()), ids)[0]


def cross_attentions(unet):
    return [n for _, n in nnx.iter_graph(unet) if isinstance(n, ParallelCrossAttention)]


def test_every_group_has_its_rate_in_both_configs(built, small):
    _, trainable, frozen, groups = split_model(built.model, built.table)
    assert set(groups.values()) == {"projections", "fuse_module", "lora", "background"}
    make_optimizer(built.config, groups)
    full = photomaker_bg.get_config()
    assert {full[f"lr_{group}"] for group in groups.values()} == {1e-5}
    make_optimizer(full, groups)
    background = [path for path, group in groups.items() if group == "background"]
    layers = cross_attentions(built.model.unet)
    assert len(background) == 2 * len(layers) > 0
    assert all(trainable[path].dtype == jnp.float32 for path in background)
    frozen = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(frozen)]
    assert not any("branches" in path for path in frozen)


def test_lora_lies_on_the_base_layers_only(built):
    layers = lora_layers(built.model.unet)
    assert layers and not any("branches" in path for path in layers)
    assert len(layers) == 8 * len(cross_attentions(built.model.unet))


def test_the_streams_and_what_they_hold(built):
    base, batch = built.base, make_batch(built.base)
    streams = condition(built, batch).streams
    assert streams.keys() == {"text", "background"}
    wanted = encode(base, SCENE)
    assert np.array_equal(streams["background"].tokens, wanted)
    dropped = drop_conditions(built.fields, batch, jnp.array([True, False]))
    dropped = condition(built, dropped).streams["background"].tokens
    assert np.array_equal(dropped[0], encode(base, "")[0])
    assert np.array_equal(dropped[1], wanted[1])


def test_without_its_branch_it_is_photomaker(built, small):
    """At scale 0 bit for bit; at scale 1, with the base's keys and values, it differs."""
    plain = open_system(configured(first_light, small))
    batch = make_batch(built.base)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))

    def run(model, conditioning):
        graphdef, state = nnx.split(model.unet)
        run = jax.jit(lambda state, x, c: nnx.merge(graphdef, state)(x, 500, c))
        return np.asarray(run(state, x, conditioning))

    conditioning = condition(built, batch)
    wanted = run(plain.model, condition(plain, batch))
    background = conditioning.streams["background"].tokens
    silent = conditioning.with_stream("background", background, scale=jnp.array([0.0, 1.0]))
    found = run(built.model, silent)
    assert np.array_equal(found[0], wanted[0])
    assert np.abs(found[1] - wanted[1]).max() > 1e-3


@pytest.fixture(scope="module")
def training(small, sample_photos):
    changes = {"data": str(sample_photos), "loader": "memory", "batch_size": 4}
    changes |= {"warmup_steps": 1, "lr_background": 1e-2, "log_every": 2, "checkpoint_every": 2}
    return configured(get_config, small, **changes)


@pytest.fixture(scope="module")
def trained_run(training, tmp_path_factory):
    """Four steps at once."""
    workdir = tmp_path_factory.mktemp("run")
    training.steps = 4
    train.train(training, workdir)
    return workdir


def save(config, workdir, change=lambda trainable: trainable):
    """A checkpoint of the initial weights, changed."""
    system = open_system(config)
    trainable = change(split_model(system.model, system.table)[1])
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(0, trainable, {"count": np.zeros(1)}, config.to_dict())


def trained(workdir):
    arrays, _ = load_trained(workdir, replicated(make_mesh()))
    return jax.tree.map(np.asarray, arrays)


@pytest.mark.slow
def test_gradients_move_every_trained_leaf(built, trained_run):
    first, last = split_model(built.model, built.table)[1], trained(trained_run)
    assert first.keys() == last.keys()
    assert not [path for path in first if np.array_equal(first[path], last[path])]


@pytest.mark.slow  # of the trainer: tests/training/test_resume.py
def test_a_run_resumed_in_its_middle_is_bit_identical(training, trained_run, tmp_path, capsys):
    shutil.copytree(trained_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    train.train(training, tmp_path / "run")
    assert "continuing from step 2" in capsys.readouterr().out
    whole, resumed = trained(trained_run), trained(tmp_path / "run")
    assert whole.keys() == resumed.keys()
    assert all(np.array_equal(whole[path], resumed[path]) for path in whole)


@pytest.fixture(scope="module")
def run(training, tmp_path_factory):
    """What a run leaves, with plausible trained weights."""
    workdir = tmp_path_factory.mktemp("run")
    save(training, workdir, lambda trainable: moved(trainable, 0))
    return workdir


@pytest.fixture(scope="module")
def pipe(small, run):
    pipe = Pipeline.from_pretrained(small)
    pipe.load_method(None, run)
    return pipe


FACE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)


def sample(pipe, prompts=PROMPT, **settings):
    count = 1 if isinstance(prompts, str) else len(prompts)
    settings = {"references": [[FACE]] * count, "num_inference_steps": 2, **settings}
    settings = {"batch_size": 1, "start_merge_step": 0, "output_type": "np", **settings}
    return pipe(prompts, **settings).images


def test_guidance_holds_what_training_showed(pipe):
    """Background from the first step on; the encoded empty prompt on the unconditional side."""
    scene, ids = {"background": [SCENE]}, np.array([[64, 64, 0, 0, 64, 64]], np.float32)
    call = Call([PROMPT], scene, [[[FACE]]], ids, (64, 64))
    guidance = pipe.conditioner.guidance(call, [None], None, [0])
    sides = (guidance.late, guidance.early, guidance.unconditional)
    late, early, unconditional = (side.streams["background"].tokens for side in sides)
    assert np.array_equal(late, pipe.encode_prompt([SCENE])[0])
    assert np.array_equal(early, late)
    assert np.array_equal(unconditional, pipe.encode_prompt([""])[0])
    assert np.any(unconditional)
    texts = [side.streams["text"].tokens for side in sides]
    assert np.array_equal(texts[1], pipe.encode_prompt(["a woman in a red hat"])[0])
    assert not np.array_equal(texts[0], texts[1])


def test_the_background_acts_even_if_the_identity_never_does(pipe):
    never = {"start_merge_step": 9}
    beach, castle = (sample(pipe, background=text, **never) for text in (SCENE, "a castle"))
    assert np.abs(beach - castle).max() > 1e-3
    assert np.array_equal(sample(pipe, **never), sample(pipe, background="", **never))


def test_one_background_for_all_or_one_each(pipe):
    prompts = [PROMPT, PROMPT]
    noise = np.random.default_rng(0).standard_normal((1, 8, 8, 4)).repeat(2, axis=0)
    same = sample(pipe, prompts, background=SCENE, latents=noise)
    each = sample(pipe, prompts, background=[SCENE, "a castle"], latents=noise)
    assert np.array_equal(same[0], same[1])
    assert np.array_equal(each[0], same[0]) and not np.allclose(each[1], same[1])
    twice = {"num_images_per_prompt": 2, "background": ["a castle", SCENE]}
    latents = noise.repeat(2, axis=0)
    pictures = sample(pipe, prompts, latents=latents, **twice)
    assert [np.array_equal(picture, same[0]) for picture in pictures] == [False] * 2 + [True] * 2


def test_scales_change_the_picture_and_compile_nothing(pipe):
    whole = sample(pipe, background=SCENE)
    compiled = sample_steps._cache_size()
    assert np.array_equal(sample(pipe, background=SCENE, scales={"background": 1.0}), whole)
    half = sample(pipe, background=SCENE, scales={"background": 0.5})
    silent = [sample(pipe, background=text, scales={"background": 0}) for text in (SCENE, "x")]
    assert not np.allclose(half, whole) and not np.allclose(silent[0], whole)
    assert np.array_equal(*silent)
    assert sample_steps._cache_size() == compiled


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"body": "a red coat"}, "body='a red coat'.*text, background"),
        ({"background": ["a", "b"]}, "2 background prompts for 1 prompts"),
        ({"background": "a", "references": None}, "references"),
        ({"scales": {"background": 2}, "references": None}, "references"),
        ({"scales": {"body": 0.5}}, "'body'.*background, identity, lora"),
        ({"scales": {"text": 0.5}}, "'text'"),
    ],
)
def test_bad_arguments_are_named(settings, named, pipe):
    with pytest.raises(ValueError, match=named):
        sample(pipe, **settings)


def test_methods_follow_each_other_on_one_pipeline(pipe, small, run, tmp_path):
    """A method's branches are removed when another method is loaded."""
    before = sample(pipe, background=SCENE)
    save(configured(first_light, small), tmp_path / "photomaker")
    pipe.load_method(None, tmp_path / "photomaker")
    assert branch_names(pipe.model.unet) == [] and pipe.streams == ("text",)
    with pytest.raises(ValueError, match="background='a beach'.*say it in the prompt"):
        sample(pipe, background="a beach")
    alone = Pipeline.from_pretrained(small)
    alone.load_method(None, tmp_path / "photomaker")
    assert np.array_equal(sample(pipe), sample(alone))
    pipe.load_method(None, run)
    assert np.array_equal(sample(pipe, background=SCENE), before)


def test_branches_have_no_place_in_a_diffusers_folder(small, run, tmp_path):
    pipe = Pipeline.from_pretrained(small)
    pipe.load_method(None, run)
    pipe.fuse_lora()
    with pytest.raises(ValueError, match="branches .background."):
        pipe.save_pretrained(tmp_path / "sdxl")
    assert not (tmp_path / "sdxl").exists()


def command(base, out, *arguments):
    arguments = ["--base", base, "--out", out, "--steps", 2, "--seed", 0, *arguments]
    arguments += ["--batch-size", 1, "--no-compilation-cache"]
    with plain_warnings():
        paths = generate.generate(generate.parse_arguments(list(map(str, arguments))))
    return [np.asarray(Image.open(path)) for path in paths], Image.open(paths[0]).text


def test_generate_gives_each_part_its_stream(small, run, pipe, tmp_path, capsys):
    Image.fromarray(FACE).save(tmp_path / "face.png")
    method = ["--method-weights", run, "--reference", tmp_path / "face.png", "--no-crop"]
    method += ["--start-merge-step", 0, "--prompt", PROMPT]
    (beach,), note = command(small, tmp_path / "a", *method, "--background", SCENE)
    wanted = (sample(pipe, background=SCENE, guidance_scale=5.0)[0] * 255).round()
    assert np.array_equal(beach, wanted)
    assert note["background"] == SCENE and note["prompt"] == PROMPT and "body" not in note
    (castle,), _ = command(small, tmp_path / "b", *method, "--background", "castle " * 80)
    assert not np.array_equal(beach, castle)
    assert 'the background is too long; this part is cut: "castle' in capsys.readouterr().err
    # The body has no stream in this method: it is joined to the prompt.
    (body,), note = command(small, tmp_path / "c", *method, "--body", "She sings.")
    wanted = (sample(pipe, PROMPT + ". She sings.")[0] * 255).round()
    assert np.array_equal(body, wanted)
    assert note["body"] == "She sings."


def test_generate_joins_the_parts_where_nothing_reads_them(small, tmp_path):
    prompts = ["--prompt", "a man.", "--prompt", "a woman"]
    parts = ["--background", "Hills", "--background", " ", "--body", "A hat."]
    found, note = command(small, tmp_path / "a", *prompts, *parts)
    joined = ["--prompt", "a man. Hills. A hat.", "--prompt", "a woman. A hat."]
    wanted, _ = command(small, tmp_path / "b", *joined)
    assert all(map(np.array_equal, found, wanted))
    assert note["prompt"] == "a man." and note["background"] == "Hills"
    assert "background" not in json.loads(note["settings"])
    three = ["--body", "a", "--body", "b", "--body", "c"]
    with pytest.raises(ValueError, match="--body is given 3 times for 2 prompts"):
        command(small, tmp_path / "c", *prompts, *three)
