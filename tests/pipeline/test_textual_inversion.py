"""Words from embedding files on the pipeline, and the same prompts in diffusers."""

import numpy as np
import pytest

from persongen_jax.pipeline import Pipeline
from persongen_jax.weights.errors import WeightsError
from persongen_jax.weights.formats.embeddings.writing import write_embeddings
from tests.helpers.lora_files import save
from tests.pipeline.pictures import PIXEL, TIGHT, to_torch
from tests.pipeline.test_adapter_kinds import draw

WIDTHS = {"clip_l": 32, "clip_g": 64}  # the tiny base's
PROMPTS = ["a photo of <me>, smiling", "<it> and <me> and a dog in the snow"]


def rows(n=2, seed=0):
    return {tower: draw(n, width, seed=seed) for tower, width in WIDTHS.items()}


@pytest.fixture
def ours(shared):
    """Without words before and after each test."""
    yield shared
    shared.unload_textual_inversion()


def load_theirs(pipe, folder):
    for mark in ("", "_2"):
        pipe.load_textual_inversion(
            str(folder),
            weight_name=f"learned_embeds{mark}.safetensors",
            text_encoder=getattr(pipe, f"text_encoder{mark}"),
            tokenizer=getattr(pipe, f"tokenizer{mark}"),
        )


def unload_theirs(pipe):
    for mark in ("", "_2"):
        pipe.unload_textual_inversion(
            text_encoder=getattr(pipe, f"text_encoder{mark}"),
            tokenizer=getattr(pipe, f"tokenizer{mark}"),
        )


def test_same_prompt_embeddings_as_diffusers(ours, theirs, golden, tmp_path):
    """Of one vector and of several, in both towers, from files that we have written."""
    write_embeddings(tmp_path / "me", "<me>", rows(3))
    write_embeddings(tmp_path / "it", "<it>", rows(1, seed=4))

    def of_diffusers():
        pipe = theirs()
        for name in ("me", "it"):
            load_theirs(pipe, tmp_path / name)
        embeds, _, pooled, _ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
        unload_theirs(pipe)
        return np.concatenate([embeds.detach().flatten(1), pooled.detach()], axis=1)

    assert ours.load_textual_inversion(tmp_path / "me") == ("<me>",)
    assert ours.load_textual_inversion(tmp_path / "it") == ("<it>",)
    found, wanted = flat(ours.encode_prompt(PROMPTS)), golden(of_diffusers)
    assert np.abs(found - wanted).max() < 1e-5


def flat(encoded):
    return np.concatenate([np.asarray(each).reshape(len(PROMPTS), -1) for each in encoded], axis=1)


@pytest.mark.slow
def test_same_pictures_as_diffusers_with_a_word_in_both_prompts(ours, theirs, latents, tmp_path):
    # Large ones, so that they show in the tiny base's pictures.
    large = {tower: 5 * each for tower, each in rows(2).items()}
    write_embeddings(tmp_path / "a", "<me>", large)
    write_embeddings(tmp_path / "b", "<bad>", {tower: each[:1] for tower, each in large.items()})
    pipe, settings = theirs(), {"num_inference_steps": 10, "guidance_scale": 5.0}
    call = {"prompt": PROMPTS, "negative_prompt": ["<bad> hands", "blurry"], **settings}

    def paint():
        return ours(**call, latents=latents, output_type="np").images

    plain = paint()
    for name in ("a", "b"):
        ours.load_textual_inversion(tmp_path / name)
        load_theirs(pipe, tmp_path / name)
    wanted = pipe(**call, latents=to_torch(latents), output_type="np").images
    unload_theirs(pipe)
    found = paint()
    assert np.abs(found - wanted).max() < TIGHT
    ours.unload_textual_inversion("<bad>")
    positive = paint()
    assert np.abs(found - positive).max() > PIXEL, "the negative prompt's word had no share in it"
    assert np.abs(positive - plain).max() > PIXEL


def test_words_come_and_go_with_their_file(ours, tmp_path):
    tables = [ours.model.text_encoder, ours.model.text_encoder_2]
    sizes = [tower.embeddings.token_embedding.embedding.shape for tower in tables]
    tokenizers = ours.base.tokenizers
    first = write_embeddings(tmp_path / "hero.safetensors", "<me>", rows(2), "kohya")[0]
    second = write_embeddings(tmp_path / "run", "him", rows(1), "diffusers")[0].parent
    with pytest.warns(UserWarning, match="'her' of LoRA x is also an ordinary one"):
        ours.words.add("x", {"her": rows(1, seed=3)})  # as load_lora does
    assert ours.load_textual_inversion(first) == ("<me>",)
    assert ours.load_textual_inversion(second, "you", name="second") == ("you",)
    assert set(tokenizers.words) == {"her", "<me>", "you"}
    assert [len(ids) for ids in tokenizers.words["<me>"]] == [2, 2]
    unused = " ".join(ours.words.unused(["a man"]))
    assert f"'<me>' of embedding {first}" in unused and "'her' of LoRA x" in unused
    assert not ours.words.unused(["<ME> and her", "not you"])
    with pytest.warns(UserWarning, match="embedding second: replaces the one of that name"):
        ours.load_textual_inversion(second, "thou", name="second")
    with pytest.warns(UserWarning, match="'thou' of embedding second is also one of embedding x"):
        ours.load_textual_inversion(first, "Thou", name="x")
    with pytest.raises(ValueError, match="no embedding 'them' is loaded.*'second'"):
        ours.unload_textual_inversion("them")
    ours.unload_textual_inversion("thou")  # both files that define it
    assert set(tokenizers.words) == {"her", "<me>"}
    ours.words.drop(["x"])
    assert set(tokenizers.words) == {"<me>"}
    ours.unload_textual_inversion(str(first))
    assert not tokenizers.words
    assert [tower.embeddings.token_embedding.embedding.shape for tower in tables] == sizes


def test_a_tower_without_its_embedding_is_said(ours, tmp_path):
    path = save(tmp_path / "sd1.safetensors", {"emb_params": rows()["clip_l"]})
    with pytest.warns(UserWarning, match="'sd1' for text_encoder_2, which reads it as plain text"):
        ours.load_textual_inversion(path)
    ids = ours.base.tokenizers.encode("sd1")
    plain = ours.base.tokenizers.tokenizer_2("sd1")["input_ids"]
    assert list(ids[1][: len(plain)]) == plain
    assert ids[0][1] == ours.model.text_encoder.config["vocab_size"]


def test_what_cannot_be_loaded_changes_nothing(ours, tmp_path):
    ours.load_textual_inversion(write_embeddings(tmp_path / "a", "<me>", rows()))
    words = dict(ours.base.tokenizers.words)
    wide = save(tmp_path / "b.safetensors", {"<you>": draw(2, 5)})
    with pytest.raises(WeightsError, match="5 wide, but this base needs 32 for text_encoder and"):
        ours.load_textual_inversion(wide)
    for call, message in (
        ((3,), "path is 3"),
        ((wide, 3), "token is 3"),
        ((wide, "a", 3), "name is 3"),
        (([wide, ""],), "path is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            ours.load_textual_inversion(*call)
    assert ours.base.tokenizers.words == words


@pytest.mark.slow
def test_a_saved_base_lacks_the_words(tiny_base, tmp_path):
    pipe = Pipeline.from_pretrained(tiny_base)
    pipe.load_textual_inversion(write_embeddings(tmp_path / "a", "<me>", rows()))
    with pytest.warns(UserWarning, match="'<me>' are not saved"):
        pipe.save_pretrained(tmp_path / "saved")
    assert "<me>" in pipe.base.tokenizers.words
    again = Pipeline.from_pretrained(tmp_path / "saved")
    assert (
        again.model.text_encoder.embeddings.token_embedding.embedding.shape[0]
        == (pipe.model.text_encoder.config["vocab_size"])
    )
