"""Pipeline calls: invalid arguments are refused, ineffective ones cause a warning."""

import warnings

import numpy as np
import pytest

from configs.first_light import get_config
from persongen_jax.diffusion.options import default_merge_step
from persongen_jax.diffusion.strengths import schedule
from persongen_jax.pipeline import Pipeline
from persongen_jax.pipeline.checks import CallWarning, ineffective_scales
from persongen_jax.systems.open import open_system

FACE = np.zeros((32, 32, 3), np.uint8)
LONG = "a red hat and " * 25 + "a Castle"
# Refused after all warnings and before anything is compiled.
STOP = {"latents": np.zeros(1)}


@pytest.fixture(scope="module")
def personal(small_base):
    """PhotoMaker with its initial weights."""
    config = get_config()
    config.base = str(small_base)
    return Pipeline.from_system(open_system(config))


@pytest.fixture(scope="module")
def plain(personal):
    return Pipeline(personal.base)


def said(pipe, prompt, *arguments, **settings):
    """The warnings of a call that is refused afterwards."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="latents have shape"):
            pipe(prompt, *arguments, **{"num_inference_steps": 8, **STOP, **settings})
    assert all(issubclass(w.category, CallWarning) and w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught]


BAD_CALLS = {
    "none": ((None,), "prompt is None: give a text, or a list of texts"),
    "number": ((5,), "prompt is 5: give a text"),
    "float": ((0.5,), "prompt is 0.5"),
    "bytes": ((b"a man",), "prompt is of type bytes"),
    "dict": (({"a": 1},), "prompt is of type dict"),
    "empty list": (([],), "prompt is an empty list"),
    "none among them": ((["a", None],), "prompt 2 of 2 is None: give a text"),
    "number among them": ((["a", 3, "b"],), "prompt 2 of 3 is 3"),
    "list among them": (([["a"]],), "prompt is of type list: give a text"),
    "array": ((np.array(["a"]),), "prompt is of type ndarray"),
    "half of a character": (("a \ud83d man",), r"half of a character \(U\+D83D\) at 2"),
    "undecodable argument": (("gr\udcfcn",), r"half of a character \(U\+DCFC\)"),
    "negative number": (("a", 5), "negative prompts: 5; give a text, or one for each"),
    "negative among them": ((["a", "b"], ["c", 4]), "number 2 of the negative prompts is 4"),
    "negatives": ((["a", "b"], ["c"] * 3), "3 negative prompts for 2 prompts"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_texts_of_the_wrong_kind_are_one_sentence(case, plain):
    arguments, named = BAD_CALLS[case]
    with pytest.raises(ValueError, match=named) as caught:
        plain(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_inference_steps": "8"}, "num_inference_steps is of type str: give a whole number"),
        ({"num_inference_steps": 8.0}, "num_inference_steps is 8.0"),
        ({"num_inference_steps": None}, "num_inference_steps=None"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"num_images_per_prompt": 1.5}, "num_images_per_prompt is 1.5"),
        ({"height": "64"}, "height is of type str"),
        ({"batch_size": 0}, "batch_size=0: give a whole number of at least 1"),
        ({"tile_size": -8, "tiling": True}, "tile_size=-8"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": 2**64}, r"seed=18446744073709551616: give a whole number below 2\*\*63"),
        ({"start_merge_step": "2"}, "start_merge_step is of type str"),
        ({"guidance_scale": None}, "guidance_scale=None: give a finite number"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"guidance_rescale": "0.5"}, "guidance_rescale='0.5'"),
        ({"guidance_rescale": 7}, "guidance_rescale=7: give 0 .none. to 1"),
        ({"tiling": "no"}, "tiling is 'no': give True or False"),
        ({"original_size": 64}, "original_size=64: give .height, width."),
        ({"target_size": (64,)}, "target_size=.64,.: give .height, width."),
        ({"original_size": (64, "64")}, r"original_size\[1\] is of type str"),
        ({"scheduler_options": ["a"]}, "scheduler_options is of type list: give a dictionary"),
        ({"scales": ["a"]}, "scales is of type list"),
        ({"latents": "x"}, "latents: a text"),
        ({"progress": 5}, "progress is 5: give a function"),
        ({"on_batch": "x"}, "on_batch is of type str"),
        ({"options": {"seed": 1}}, "options is of type dict: give SamplingOptions"),
    ],
)
def test_numbers_of_the_wrong_kind_are_one_sentence(settings, named, plain):
    with pytest.raises(ValueError, match=named):
        plain("a man", **settings)


def test_sizes_may_be_arrays(plain):
    pair = np.array([64, 64])
    assert said(plain, "a man", original_size=pair, crops_coords_top_left=pair) == []


@pytest.mark.parametrize("given", [None, [None], [], 5])
def test_encode_prompt_is_as_strict(given, plain):
    with pytest.raises(ValueError, match="prompts is|give a text"):
        plain.encode_prompt(given)


def test_encode_prompt_warns_about_cut_text(plain):
    with pytest.warns(CallWarning, match="the prompt is too long"):
        plain.encode_prompt([LONG])


def test_paths_and_names_of_the_wrong_kind(plain):
    for call in (plain.load_lora, lambda x: plain.load_method(None, x), Pipeline.from_pretrained):
        for given in (None, 5, ""):
            with pytest.raises(ValueError, match="(path|weights) is .*: give a path"):
                call(given)
    with pytest.raises(ValueError, match="name is 5: give a method's name"):
        plain.load_method(5, "x")
    with pytest.raises(ValueError, match="weights is of type list: give a dictionary"):
        plain.set_lora_weights(["a"])


@pytest.mark.parametrize("dtype", ["int8", "bool", np.int32])
def test_weights_are_floats(dtype, small_base):
    with pytest.raises(ValueError, match="dtype=.*: give bfloat16, float16 or float32"):
        Pipeline.from_pretrained(small_base, dtype=dtype)


@pytest.mark.parametrize("strength", [None, "0.5", {"a": 1}])
def test_a_strength_of_the_wrong_kind(strength, personal):
    call = {"references": [[FACE]], "scales": {"identity": strength}}
    with pytest.raises(ValueError, match="scales: 'identity' is .*give a number, or a list"):
        personal("a man img", **call)


def test_an_empty_prompt_with_a_reference_is_one_sentence(personal):
    with pytest.raises(ValueError, match='appears 0 times in the prompt ""'):
        personal("", references=[[FACE]])


def test_an_ordinary_call_causes_no_warning(plain, personal):
    assert said(plain, ["a man in a hat", "a (small) dog, 3-4 years"], "blurry") == []
    assert said(personal, "a man img in a hat", "blurry", references=[[FACE]]) == []
    given = {"references": [[FACE]], "scales": {"identity": [(0.5, 1, 0.8)]}}
    assert said(personal, "a man img in a hat", seed=None, start_merge_step=2, **given) == []


@pytest.mark.parametrize("what", ["prompt", "negative prompt"])
def test_cut_text_causes_a_warning_in_python_too(what, plain):
    texts = (LONG,) if what == "prompt" else ("a man", LONG)
    (line,) = said(plain, *texts)
    assert line.startswith(f'the {what} is too long; this part is cut: "') and "Castle" in line
    # Without guidance the negative prompt is unused.
    lines = said(plain, *texts, guidance_scale=1.0)
    assert [line.startswith("the negative prompt has no effect") for line in lines] == (
        [True] if what == "negative prompt" else [False]
    )


def test_copies_of_the_class_word_take_room(personal):
    fits = "a man img" + " a" * 73
    assert said(personal, fits, references=[[FACE]]) == []
    (line,) = said(personal, fits + " Castle", references=[[FACE]])
    assert line.endswith('this part is cut: "Castle"')
    (line,) = said(personal, fits, references=[[FACE] * 3])
    assert line.endswith('this part is cut: "a a"')


WITHOUT_EFFECT = {
    "negative": ({"guidance_scale": 1.0}, ["negative prompt has no effect: guidance_scale=1"]),
    "rescale": (
        {"guidance_scale": 0, "guidance_rescale": 0.7},
        ["negative prompt has no effect", "guidance_rescale=0.7 has no effect"],
    ),
    "half": ({"guidance_scale": 0.5}, ["guidance_scale=0.5 turns guidance off", "no effect"]),
    "merge": ({"start_merge_step": 3}, ["start_merge_step=3 has no effect without references"]),
    "tiles": ({"tile_size": 64}, ["tile_size=64 has no effect without tiling"]),
    "latents": (
        {"tiling": True, "output_type": "latent"},
        ["tiling has no effect on output_type='latent'"],
    ),
    "seed": ({"seed": 3}, ["seed=3 has no effect: latents are given, and euler draws no noise"]),
    "seed drawn": ({"seed": 3, "scheduler": "euler_ancestral"}, []),
}


@pytest.mark.parametrize("case", WITHOUT_EFFECT)
def test_options_without_effect_cause_a_warning(case, plain):
    settings, named = WITHOUT_EFFECT[case]
    lines = said(plain, "a man", "blurry", **settings)
    assert len(lines) == len(named)
    assert all(name in line for name, line in zip(named, lines, strict=True))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"start_merge_step": 10}, "start_merge_step=10 is not before the last of 8 steps"),
        ({"start_merge_step": 7}, "start_merge_step=7 is not before the last of 8 steps"),
        ({"start_merge_step": 6}, ""),
        ({"scales": {"identity": 0}}, "'identity' is 0 in every step"),
        # The person acts in steps 2 to 7 of 8.
        ({"scales": {"identity": [(0.2, 1, 0)]}}, "'identity' is 0 in every step"),
        ({"scales": {"identity": [(0.3, 1, 0)]}}, ""),
        ({"scales": {"identity": [(0, 0.2, 0.5)]}}, "steps before the person acts"),
        ({"scales": {"identity": [(0.3, 0.36, 0)]}}, "a range that contains none of the steps"),
    ],
)
def test_references_and_strengths_without_effect_cause_a_warning(settings, named, personal):
    lines = said(personal, "a man img", references=[[FACE]], **settings)
    assert len(lines) == bool(named)
    assert all(named in line for line in lines)


@pytest.mark.parametrize(
    ("strength", "said"),
    [
        ([(0, 0.5, 0.0)], "covers only steps before the person acts"),
        ([(0.55, 0.6, 0.0)], "a range that contains none of the steps"),
        ([(0, 0.5, 0.0), (0.5, 1, 1.0)], ""),
        (0.8, ""),
        (1.0, ""),
    ],
)
def test_strengths_are_compared_with_those_of_the_method(strength, said):
    """InstantID's and PuLID's is 0.8. The person acts from step 2 of 4."""
    schedules = {"identity": schedule("identity", strength, 4, 0.8)}
    asked = {"identity": strength}
    lines = list(ineffective_scales(asked, schedules, {"identity"}, 2, {"identity": 0.8}))
    assert len(lines) == bool(said) and all(said in line for line in lines)


def test_a_lora_of_weight_0_and_a_trigger_without_references(personal):
    own = dict(personal.adapters)
    personal.adapters = {**own, "style": ({}, 0.0)}
    try:
        assert said(personal, "a man") == ["LoRA style: its weight is 0, so it has no effect"]
    finally:
        personal.adapters = own
    (line,) = said(personal, "a man img on a hill")
    assert line == 'no references: the trigger word "img" is read like any other word'


def test_weights_are_told_by_a_call(plain):
    lines = said(plain, "a (man:1.2)", "[bad] <lora:x:1>")
    assert len(lines) == 3 and "load_lora" in lines[2]


@pytest.mark.parametrize(("steps", "step"), [(50, 10), (30, 6), (8, 1), (4, 0), (2, 0), (1, -1)])
def test_the_default_merge_step_follows_the_steps(steps, step):
    assert default_merge_step(steps) == step < steps - 1
    assert default_merge_step(1000) == 30
