"""Words whose embeddings are bundled with a LoRA (``bundle_emb``), in prompts."""

import numpy as np
import pytest
from flax import nnx

from persongen_jax.models.encoders.clip import CLIPTextModel
from persongen_jax.pipeline import Pipeline
from persongen_jax.weights.errors import UnsupportedAdapter
from tests.helpers.lora_files import save
from tests.pipeline.test_adapter_kinds import LINEAR, draw, lora

WIDTHS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}


def table(pipe, tower):
    return getattr(pipe.model, WIDTHS[tower]).embeddings.token_embedding.embedding


def embeddings(pipe, word="<me>", rows=2, seed=0):
    return {
        f"bundle_emb.{word}.{tower}": draw(rows, table(pipe, tower).shape[1], seed=seed)
        for tower in WIDTHS
    }


def bundle(pipe, shapes, path, **words):
    return save(path, {**lora(shapes), **embeddings(pipe, **words)})


def test_a_word_is_its_embeddings(ours, shapes, tmp_path):
    """The same as two words of the vocabulary whose rows are those embeddings."""
    path, prompt = bundle(ours, shapes, tmp_path / "a.safetensors"), "a photo of %s in the snow"
    ours.load_lora(path, weight=0.5)
    seen = ours.encode_prompt([prompt % "<me>", prompt % "<ME>"])
    plain = ours.encode_prompt([prompt % "q x"])
    ours.unload_lora()
    tokens = ours.base.tokenizers.encode("q x")[:, 1:3]
    vectors, before = embeddings(ours), {}
    for row, tower in enumerate(WIDTHS):
        where = table(ours, tower)
        before[tower] = where.get_value()
        where.set_value(before[tower].at[tokens[row]].set(vectors[f"bundle_emb.<me>.{tower}"]))
    expected = ours.encode_prompt([prompt % "q x", prompt % "q x"])
    for tower, rows in before.items():
        table(ours, tower).set_value(rows)
    for mine, right, other in zip(seen, expected, plain, strict=True):
        np.testing.assert_array_equal(mine, right)
        assert np.abs(np.asarray(other) - right[:1]).max() > 1e-3


@pytest.mark.parametrize("eos", [2, 9])
def test_a_text_ends_where_it_did_with_words_in_it(eos):
    """Their ids are the highest; in configs, 2 means the highest of the vocabulary."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = {**sizes, "num_hidden_layers": 1, "vocab_size": 10, "eos_token_id": eos}
    model = CLIPTextModel(config, rngs=nnx.Rngs(0))
    assert model._pooled_positions(np.array([[8, 1, 10, 11, 3, 9, 9]])).tolist() == [5]


def test_words_come_and_go_with_their_lora(ours, shapes, tmp_path):
    sizes = {tower: table(ours, tower).shape for tower in WIDTHS}
    first = bundle(ours, shapes, tmp_path / "a.safetensors")
    second = bundle(ours, shapes, tmp_path / "b.safetensors", word="him", rows=1, seed=1)
    plain = np.asarray(ours.encode_prompt(["<me> and him"])[0])
    ours.load_lora(first)
    ours.load_lora(second)
    both = np.asarray(ours.encode_prompt(["<me> and him"])[0])
    ours.load_lora(first)  # again: nothing is duplicated
    assert table(ours, "clip_g").shape[0] == sizes["clip_g"][0] + 3
    np.testing.assert_array_equal(ours.encode_prompt(["<me> and him"])[0], both)
    ours.unload_lora()
    assert {tower: table(ours, tower).shape for tower in WIDTHS} == sizes
    np.testing.assert_array_equal(ours.encode_prompt(["<me> and him"])[0], plain)


@pytest.mark.slow
def test_a_fused_lora_leaves_its_words_and_a_saved_model_does_not(tiny_base, shapes, tmp_path):
    pipe = Pipeline.from_pretrained(tiny_base)
    pipe.load_lora(bundle(pipe, shapes, tmp_path / "a.safetensors"), name="a")
    with pytest.warns(UserWarning, match="'<me>' are not saved"):
        pipe.save_lora(tmp_path / "b.safetensors", "a")
    pipe.fuse_lora()
    pipe.unload_lora()
    fused = np.asarray(pipe.encode_prompt(["<me>"])[0])
    with pytest.warns(UserWarning, match="'<me>' are not saved"):
        pipe.save_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(pipe.encode_prompt(["<me>"])[0], fused)
    again = Pipeline.from_pretrained(tmp_path / "saved")
    assert np.abs(np.asarray(again.encode_prompt(["<me>"])[0]) - fused).max() > 1e-3


def test_a_word_is_cut_and_counted_as_its_tokens(ours, shapes, tmp_path):
    ours.load_lora(bundle(ours, shapes, tmp_path / "a.safetensors", word="me", rows=3))
    tokenizers = ours.base.tokenizers
    vocabulary = ours.model.text_encoder.config["vocab_size"]
    ids, mask, read = tokenizers.encode_with_trigger("me img", 2)
    assert list(ids[0, 1:5]) == [vocabulary, vocabulary + 1, vocabulary + 2, vocabulary + 2]
    assert list(np.flatnonzero(mask)) == [3, 4] and read == "me"
    long = "me " * 25 + "ME end"
    assert tokenizers.cut_part(long) == "ME end"
    assert tokenizers.has_word("<me>", "海边的<me>在笑")
    assert not tokenizers.has_word("me", "some time") and tokenizers.has_word("me", "Me.")


def test_words_without_effect_cause_a_warning(ours, shapes, tmp_path):
    vectors = embeddings(ours)
    vectors["bundle_emb.<me>.clip_l_out"] = vectors.pop("bundle_emb.<me>.clip_l")
    path = save(tmp_path / "a.safetensors", {**lora(shapes), **vectors})
    with pytest.warns(UserWarning) as told:
        ours.load_lora(path)
    lines = [str(each.message) for each in told]
    assert any("clip_l_out of the word '<me>'" in line for line in lines)
    assert any("no embedding of the word '<me>' for text_encoder," in line for line in lines)
    with pytest.warns(UserWarning, match="'<me>' of LoRA .* is in none of the prompts"):
        with pytest.raises(ValueError, match="latents have shape"):  # before anything is compiled
            ours("a man", num_inference_steps=1, latents=np.zeros(1))
    assert not ours.words.unused(["a man like <Me>"])
    other = bundle(ours, shapes, tmp_path / "b.safetensors")
    with pytest.warns(UserWarning, match="is also one of LoRA"):
        ours.load_lora(other)


def test_embeddings_for_another_base(ours, shapes, tmp_path):
    wide = {**lora(shapes), "bundle_emb.<me>.clip_l": draw(2, 5)}
    with pytest.raises(UnsupportedAdapter, match="shape .2, 5.*for SDXL"):
        ours.load_lora(save(tmp_path / "a.safetensors", wide))
    vectors = {key: rows * np.nan for key, rows in embeddings(ours).items()}
    with pytest.raises(UnsupportedAdapter, match="not finite"):
        ours.load_lora(save(tmp_path / "b.safetensors", {**lora(shapes), **vectors}))
    assert not ours.adapters and not ours.base.tokenizers.words
    assert LINEAR in shapes
