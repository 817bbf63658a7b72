"""PhotoMaker v1 and v2, whole pipelines, against the authors' own: every run of their golden files.

The files are written in the published layout and opened by load_method. The prompts, photographs
and face vectors of the originals go through the call; of v2 the recogniser's vectors are given, as
there. Our text-only prompt is the prompt without the trigger word. The original decodes its ids and
encodes the text again; the ids are the same here.
"""

import functools

import numpy as np
import pytest
from safetensors.torch import save_file as save_torch

from data_pipeline.examples.fields import Call
from data_pipeline.faces.face import Face
from data_pipeline.prompts import Tokenizers
from persongen_jax.pipeline import Pipeline
from persongen_jax.weights.files.safetensors_file import write_safetensors
from persongen_jax.weights.formats.photomaker import HEADS, PERCEIVER
from tests.helpers.iresnet_twin import TorchIResNet, randomise_statistics
from tests.helpers.published_goldens import golden, relative_gap, weights, write_base
from tests.helpers.twins import randomise

TOLERANCE = 1e-4
RUNS = ("main", "merge_at_once", "one_image", "no_guidance", "rescale", "long", "no_negative")


def name_of(version):
    return f"photomaker_v{version}_pipeline"


def write_recogniser(path, width):
    net = TorchIResNet((1, 1, 1, 1), (4, 4, 4, 4), input_size=32, embedding_dim=width)
    net = randomise_statistics(randomise(net)).eval()
    save_torch({k: v.contiguous() for k, v in net.state_dict().items()}, path)
    return path


def write_photomaker(path, version):
    """The golden's weights in the published layout; the metadata say what its sizes do not."""
    config, tensors = golden(name_of(version))[0], weights(name_of(version))
    tensors = {key.replace("/", ".", 1): value for key, value in tensors.items()}
    notes = {HEADS: str(config["vision"]["num_attention_heads"])}
    if version == 2:
        notes[PERCEIVER] = str(config["perceiver"]["dim_head"])
    entries = [(k, v.shape, v.dtype, functools.partial(np.asarray, v)) for k, v in tensors.items()]
    write_safetensors(path, entries, notes)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    write_base(folder / "base")
    for version in (1, 2):
        write_photomaker(folder / f"photomaker-v{version}.safetensors", version)
    write_recogniser(folder / "recogniser.safetensors", 24)
    return folder


def open_pipeline(folder, version):
    pipe = Pipeline.from_pretrained(folder / "base")
    encoder = folder / "recogniser.safetensors" if version == 2 else ""
    path = folder / f"photomaker-v{version}.safetensors"
    pipe.load_method("photomaker", path, encoder=encoder)
    return pipe


@pytest.fixture(scope="module")
def pipes(folder):
    return functools.cache(functools.partial(open_pipeline, folder))


def references(version, count=2):
    _, arrays = golden(name_of(version))
    images = [arrays[f"in/id_image_{i}"] for i in range(count)]
    if version == 1:
        return images
    embeds = arrays["in/id_embeds"]
    return [Face(image, embedding=e) for image, e in zip(images, embeds, strict=False)]


def run(pipe, version, name, **changes):
    """The last latents of one of the golden's runs, [2, 4, h, w]."""
    config, arrays = golden(name_of(version))
    own = config["runs"][name]
    images = pipe(
        config[own.get("prompt", "prompt")],
        own.get("negative_prompt", config["negative_prompt"]),
        references=[references(version, own["images"])],
        latents=np.moveaxis(arrays["in/latents"], 1, -1),
        num_images_per_prompt=config["images_per_prompt"],
        num_inference_steps=config["steps"],
        guidance_scale=own["guidance"],
        guidance_rescale=own.get("guidance_rescale", 0.0),
        start_merge_step=own["start_merge_step"],
        height=config["height"],
        width=config["width"],
        scheduler="euler",
        output_type="latent",
        **changes,
    ).images
    return np.moveaxis(images, -1, 1)


class OriginalTokenizers(Tokenizers):
    """Those of v2's original, whose repetition of the class token pushes the end marker out."""

    def encode_with_trigger(self, prompt, copies, trigger_word="img"):
        _, mask, plain = super().encode_with_trigger(prompt, copies, trigger_word)
        _, arrays = golden(name_of(2))
        ids = np.concatenate([arrays[f"out/long_expanded_ids_{n}"] for n in (1, 2)])
        return ids.astype(np.int32), mask, plain


def guidance(pipe, prompts, negatives, people):
    """What the UNet would read, from the call's own inputs."""
    time_ids = np.tile(np.array([128, 96, 0, 0, 128, 96], np.float32), (len(prompts), 1))
    call = Call(prompts, {}, people, time_ids, (128, 96))
    return pipe.conditioner.guidance(call, negatives, None, np.arange(len(prompts)))


def texts(conditioning):
    return conditioning.streams["text"].tokens, conditioning.pooled_prompt_embeds


@pytest.mark.parametrize("version", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_what_the_unet_reads(version, pipes):
    """Early steps, late ones, and the unconditional side with and without a negative prompt."""
    config, arrays = golden(name_of(version))
    pipe = pipes(version)
    prompts, people = [config["prompt"]] * 2, [[references(version)]] * 2
    found = guidance(pipe, prompts, [config["negative_prompt"], None], people)
    for side, name, row in (
        (found.early, "main_{}_early", 1),
        (found.late, "main_{}_late", 1),
        (found.unconditional, "main_{}_late", 0),
    ):
        for got, what in zip(texts(side), ("text_embeds", "pooled"), strict=True):
            wanted = arrays[f"out/{name.format(what)}"][row]
            assert relative_gap(got[0], wanted) <= 5e-5
    for got, what in zip(texts(found.unconditional), ("text_embeds", "pooled"), strict=True):
        assert not arrays[f"out/no_negative_{what}"][0].any() and not got[1].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("version", [1, 2])
def test_every_run_of_the_original(version, name, pipes):
    config, arrays = golden(name_of(version))
    assert set(config["runs"]) == set(RUNS)
    pipe, wanted = pipes(version), arrays[f"out/{name}_latents_per_step"][-1]
    if (version, name) != (2, "long"):
        found = run(pipe, version, name)
        assert relative_gap(found, wanted) <= TOLERANCE
        return
    # Ours keeps the end marker, whose place the pooled embedding is read at; else they are alike.
    text, tokenizers = pipe.text, pipe.text.tokenizers
    ids, mask, _ = tokenizers.encode_with_trigger(config["long_prompt"], 4)
    for row, number in zip(ids, (1, 2), strict=True):
        theirs = arrays[f"out/long_expanded_ids_{number}"][0]
        assert row[-1] == tokenizers.tokenizer.eos_token_id != theirs[-1]
        assert np.array_equal(row[:-1], theirs[:-1])
    assert np.array_equal(mask, arrays["out/long_class_tokens_mask"][0])
    ours = run(pipe, version, name)
    text.tokenizers = OriginalTokenizers(tokenizers.tokenizer, tokenizers.tokenizer_2)
    found = run(pipe, version, name)
    text.tokenizers = tokenizers
    assert relative_gap(found, wanted) <= TOLERANCE < relative_gap(ours, wanted)


@pytest.mark.slow
def test_without_references_the_base_acts_alone(folder, pipes):
    """Bit for bit, with version 2 loaded, whose LoRA does not act either."""
    _, arrays = golden(name_of(2))
    settings = {"latents": np.moveaxis(arrays["in/latents"], 1, -1)[:1], "output_type": "latent"}
    settings |= {"num_inference_steps": 1, "guidance_scale": 1.0, "height": 128, "width": 96}
    ours, plain = (
        pipe("a portrait of a girl", **settings).images
        for pipe in (pipes(2), Pipeline.from_pretrained(folder / "base"))
    )
    assert np.array_equal(ours, plain)
