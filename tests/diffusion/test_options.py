"""The settings of sampling as keywords, flags and keys of a config; strengths by step."""

import argparse
import re

import numpy as np
import pytest

from persongen_jax import evaluate
from persongen_jax.diffusion.options import (
    FIELDS,
    FLAGS,
    KEYS,
    VALIDATION_FLAGS,
    SamplingOptions,
    add_options,
    given_options,
)
from persongen_jax.diffusion.plan import make_plan
from persongen_jax.diffusion.samplers import guide
from persongen_jax.diffusion.strengths import schedule
from persongen_jax.evaluation import of_run
from persongen_jax.systems.ddpm import Ddpm
from persongen_jax.systems.sdxl_config import sdxl_defaults


def parsed(*words, **defaults):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_options(parser, **defaults)
    return parser.parse_args(words), " ".join(parser.format_help().split())


def test_every_setting_is_described():
    listed = re.findall(r"^        (\w+): \S", SamplingOptions.__doc__, re.MULTILINE)
    assert listed == list(FIELDS)


def test_flags_are_the_settings():
    args, said = parsed()
    assert given_options(args) == {
        "num_inference_steps": 50,
        "guidance_scale": 5.0,
        "guidance_rescale": 0.0,
        "num_images_per_prompt": 1,
        "tiling": False,
    }
    assert SamplingOptions(**given_options(args)) == SamplingOptions()
    assert "--steps STEPS sampling steps (default: 50)" in said
    assert "--tile-size TILE_SIZE side of a tile in pixels; default: 512 (default: None)" in said
    words = "--steps 7 --guidance-scale 2 --seed 3 --start_merge_step -1 --tiling --height 8"
    args, _ = parsed(*words.split(), "--scheduler", "euler", "--images-per-prompt", "2")
    assert SamplingOptions(**given_options(args)) == SamplingOptions(
        num_inference_steps=7,
        guidance_scale=2.0,
        seed=3,
        start_merge_step=-1,
        tiling=True,
        height=8,
        scheduler="euler",
        num_images_per_prompt=2,
    )
    with pytest.raises(SystemExit):
        parsed("--height", "8.5")


def test_a_command_may_have_other_defaults():
    args, said = parsed(seed=42, guidance_scale="3, or 1 without guidance")
    assert args.seed == 42 and args.guidance_scale is None
    assert "guidance_scale" not in given_options(args)
    assert "not on how images are batched (default: 42)" in said
    assert "halves the cost; default: 3, or 1 without guidance (default: None)" in said


def test_a_call_s_names_are_settings_or_others():
    options, others = SamplingOptions(seed=1).taking({"guidance_scale": 2.0, "pose": "x"})
    assert options == SamplingOptions(seed=1, guidance_scale=2.0) and others == {"pose": "x"}
    # None is what "not given" is called.
    assert SamplingOptions(seed=1).taking({"seed": None})[0] == SamplingOptions()


@pytest.mark.parametrize("defaults", [sdxl_defaults, Ddpm.defaults])
def test_a_config_s_keys_are_settings(defaults):
    config = defaults()
    options = SamplingOptions.of_validation(config, output_type="np")
    assert options.output_type == "np" and options.scheduler is None
    found = {name: getattr(options, name) for name, key in KEYS.items() if key in config}
    assert found == {n: config[k] or None for n, k in KEYS.items() if k in config}
    config.validation_scheduler, config.validation_steps = "ddpm", 3
    plan = SamplingOptions.of_validation(config).plan({})
    assert plan.name == "ddpm" and plan.num_steps == 3


def test_an_evaluation_changes_these_keys():
    words = "--steps 3 --guidance 1.5 --scheduler ddim --seed 7 --merge-step 0".split()
    args = evaluate.parse_arguments(["--run", "x", *words])
    config = sdxl_defaults()
    config.system, config.validate_in_train = "sdxl", "x"
    of_run.change_config(config, args)
    assert SamplingOptions.of_validation(config) == SamplingOptions(
        num_inference_steps=3,
        guidance_scale=1.5,
        scheduler="ddim",
        seed=7,
        start_merge_step=0,
    )
    assert set(VALIDATION_FLAGS) <= of_run.OPTIONS.keys() and len(FLAGS) > len(KEYS)


def test_what_was_changed():
    assert SamplingOptions().changed() == []
    sizes = {"target_size": np.array([8, 8]), "scales": {"identity": 0.5}}
    assert SamplingOptions(seed=0, **sizes).changed() == ["seed", "scales", "target_size"]


def test_what_follows_from_them():
    config = {"_class_name": "DDIMScheduler"}
    options = SamplingOptions(num_inference_steps=4, scheduler_options={"eta": 0.5})
    assert options.plan(config).stochastic and options.plan(config).num_steps == 4
    wanted = make_plan(config, 4, eta=0.5).coefficients
    assert all(np.array_equal(v, wanted[k]) for k, v in options.plan(config).coefficients.items())
    assert options.scalars(50) == (5.0, 0.0, 10)
    assert SamplingOptions(start_merge_step=0).merge_step(50) == 0
    # Of the SDE's 2 n - 1 calls of the model two belong to a step: none is split.
    few = SamplingOptions(5, start_merge_step=1, scheduler="k_dpmpp_sde")
    plan = few.plan({})
    assert few.merge_step(plan.num_steps, plan.calls_per_step) == 3
    assert SamplingOptions(start_merge_step=-1).merge_step(9, 2) == -1
    assert SamplingOptions().scalars(99, 2) == (5.0, 0.0, 21)
    assert not [*few.without_effect(plan, (), True, False)]
    (said,) = SamplingOptions(5, start_merge_step=4).without_effect(plan, (), True, False)
    assert "not before the last of 5 steps" in said
    assert options.time_ids((64, 32)).tolist() == [64, 32, 0, 0, 64, 32]
    given = SamplingOptions(original_size=(8, 9), crops_coords_top_left=(1, 2))
    assert given.time_ids((64, 32)).tolist() == [8, 9, 1, 2, 64, 32]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"scheduler": 3}, "scheduler is 3: give a name"),
        ({"width": 0}, "width=0: give a whole number of at least 1"),
        ({"tiling": None}, "tiling is None: give True or False"),
        ({"output_type": "jpg"}, "output_type='jpg': use 'pil', 'np' or 'latent'"),
        ({"guidance_rescale": None}, "guidance_rescale=None: give a finite number"),
    ],
)
def test_a_bad_value_is_one_sentence(settings, named):
    with pytest.raises(ValueError, match=named):
        SamplingOptions(**settings)


def test_both_forms_of_guidance_are_their_equations():
    """BoLID's eq. 8, (w + 1) c - w u, and eq. 13, s c + (1 - s) u: s = w + 1."""
    c, u = np.random.default_rng(0).standard_normal((2, 1, 2, 2, 3))
    by_weight = SamplingOptions(guidance_scale=6.5, guidance_form="weight")
    by_scale = SamplingOptions(guidance_scale=7.5)
    assert by_weight.scalars(30) == by_scale.scalars(30)
    for options, wanted in ((by_weight, 7.5 * c - 6.5 * u), (by_scale, 7.5 * c + (1 - 7.5) * u)):
        assert np.allclose(guide(c, u, options.scalars(30)[0]), wanted, atol=1e-5)
    config = sdxl_defaults()
    config.validation_guidance, config.validation_guidance_form = 4.0, "weight"
    assert SamplingOptions.of_validation(config).guidance == 5.0
    for form, ends in (("scale", (-1.0, 0.0, 1.0)), ("weight", (-2.0, -1.0, -0.5, 0.0))):
        for end in ends:
            assert not SamplingOptions(guidance_scale=end, guidance_form=form).guides
        assert SamplingOptions(guidance_scale=ends[-1] + 0.1, guidance_form=form).guides
    off = SamplingOptions(guidance_scale=-0.5, guidance_form="weight")
    plan = off.plan({"_class_name": "DDIMScheduler"})
    said = list(off.without_effect(plan, [], identity=False, latents=False))
    assert said == ["guidance_scale=-0.5 turns guidance off; it acts above 0"]
    with pytest.raises(ValueError, match="guidance_form='w': use 'scale' or 'weight'"):
        SamplingOptions(guidance_form="w")


def test_a_number_and_ranges():
    assert schedule("identity", 0.5, 3).tolist() == [0.5, 0.5, 0.5]
    assert schedule("pose", [(0.5, 1, 2.0)], 4, usual=0.75).tolist() == [0.75, 0.75, 2.0, 2.0]
    found = schedule("identity", [(0.3, 1.0, 0.8), (0.0, 0.3, 0.0)], 10)
    assert np.allclose(found, [0] * 3 + [0.8] * 7) and found.dtype == np.float32
    # Steps that no range covers have 1; 0.3 of 50 steps are 15.
    assert schedule("body", [(0.3, 0.5, -2)], 50).tolist() == [1] * 15 + [-2] * 10 + [1] * 25


@pytest.mark.parametrize(
    ("strength", "named"),
    [
        ([(0.0, 0.5, 1), (0.4, 1.0, 2)], "'lora' overlap before 0.5"),
        ([(0.5, 0.5, 1)], "0.5..0.5"),
        ([(0.0, 1.5, 1)], "0..1.5"),
        ([(0.0, 1.0)], "start, end, value"),
        ("strong", "start, end, value"),
        (float("nan"), "finite"),
    ],
)
def test_bad_strengths_are_named(strength, named):
    with pytest.raises(ValueError, match=named):
        schedule("lora", strength, 10)
