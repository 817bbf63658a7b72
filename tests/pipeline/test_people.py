"""An attention branch on the identity when sampling: strengths by step, several people, no trigger.

On ip_lora, which has all of it: a branch, and LoRA on it and on the base layers.
"""

import numpy as np
import pytest

from persongen_jax.generate import files as generate_files
from persongen_jax.pipeline import Pipeline
from persongen_jax.pipeline.images import sample_steps
from tests.helpers.photomaker_files import write_random_photomaker
from tests.helpers.training_runs import small_base

PROMPT = "a woman in a red hat"
ANN, BOB = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)
LEFT = np.arange(64)[None] < np.full((64, 1), 32)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small_base(tmp_path_factory)


@pytest.fixture(scope="module")
def photomaker_file(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("photomaker") / "photomaker.safetensors"
    write_random_photomaker(base, path)
    return path


@pytest.fixture(scope="module")
def pipe(base, photomaker_file):
    pipe = Pipeline.from_pretrained(base)
    pipe.load_method("ip_lora", photomaker_file)
    return pipe


def paint(pipe, prompt=PROMPT, **settings):
    settings = {"references": [[ANN]], "num_inference_steps": 4, "batch_size": 1, **settings}
    settings = {"start_merge_step": -1, "output_type": "latent", **settings}
    return np.asarray(pipe(prompt, **settings).images)


def test_strengths_by_step_are_data(pipe):
    whole = paint(pipe)
    compiled = sample_steps._cache_size()
    merged = paint(pipe, start_merge_step=1)
    late = paint(pipe, scales={"identity": [(0, 0.5, 0)]})
    assert np.allclose(late, merged, atol=1e-5) and not np.allclose(late, whole, atol=1e-3)
    silent = paint(pipe, scales={"identity": 0.0})
    assert np.allclose(silent, paint(pipe, start_merge_step=9), atol=1e-5)
    lora = {n: paint(pipe, scales={"lora": own}) for n, own in LORA_STRENGTHS.items()}
    assert not np.allclose(lora["none"], whole, atol=1e-3)
    assert not np.allclose(lora["first half"], whole, atol=1e-3)
    assert not np.allclose(lora["first half"], lora["none"], atol=1e-3)
    assert np.array_equal(paint(pipe, scales={"lora": [(0, 0.5, 1), (0.5, 1, 1)]}), whole)
    pipe.set_lora_weights({"method:ip_lora": 0})
    assert np.array_equal(paint(pipe), lora["none"])
    pipe.set_lora_weights({"method:ip_lora": 1})
    assert sample_steps._cache_size() == compiled


LORA_STRENGTHS = {"none": 0, "first half": [(0.5, 1, 0)]}


def test_the_trigger_word_may_stand_there_or_not(pipe):
    assert np.array_equal(paint(pipe), paint(pipe, "a woman IMG in a red hat"))
    assert pipe.text.read("a man img and a woman img", 1)[2] == "a man and a woman"


def test_two_people_each_in_their_region(pipe):
    def two(first, second, regions):
        return paint(pipe, references=[[[first], [second]]], regions=[regions])

    both, one = two(ANN, BOB, [LEFT, ~LEFT]), paint(pipe)
    compiled = sample_steps._cache_size()
    assert np.allclose(two(BOB, ANN, [~LEFT, LEFT]), both, atol=1e-4)
    assert not np.allclose(two(BOB, ANN, [LEFT, ~LEFT]), both, atol=1e-3)
    nowhere = np.zeros((8, 8))
    alone = two(ANN, BOB, [np.ones((8, 8)), nowhere])
    assert np.array_equal(two(ANN, ANN, [np.ones((8, 8)), nowhere]), alone)
    assert np.allclose(alone, one, atol=1e-4)
    silent = paint(pipe, scales={"identity": 0.0})
    assert np.allclose(two(ANN, BOB, [nowhere, nowhere]), silent, atol=1e-4)
    assert sample_steps._cache_size() == compiled


def test_bad_arguments_are_named(pipe, base, photomaker_file):
    people = {"references": [[[ANN], [BOB]]]}
    for settings, named in (
        (people, "give regions"),
        ({**people, "regions": [[LEFT]]}, "1 regions for 2 people"),
        ({"references": None, "regions": [[LEFT]]}, "regions go with references"),
        ({"scales": {"identity": [(0, 2, 1)]}}, "0..2"),
        ({"scales": {"background": 1}}, "'background'"),
    ):
        with pytest.raises(ValueError, match=named):
            paint(pipe, **settings)
    with pytest.raises(ValueError, match="attention branches"):
        pipe.save_lora("x.safetensors", "method:ip_lora")
    other = Pipeline.from_pretrained(base)
    other.load_method("photomaker", photomaker_file)
    with pytest.raises(ValueError, match="several people: .* into the prompt.*id_branch"):
        paint(other, "a woman img", **people, regions=[[LEFT, ~LEFT]])


def test_references_on_the_command_line_are_grouped_by_their_region(tmp_path):
    grouped = generate_files.group_references(["a.png@l.png", "b.png@r.png", "c.png@l.png"])
    assert {str(mask): [str(path) for path, _ in own] for mask, own in grouped.items()} == {
        "l.png": ["a.png", "c.png"],
        "r.png": ["b.png"],
    }
    there = tmp_path / "me@home.png"
    there.touch()
    assert generate_files.group_references([str(there), "b.png"]).keys() == {None}
    with pytest.raises(ValueError, match="--reference b.png: others have a region"):
        generate_files.group_references(["a.png@l.png", "b.png"])
