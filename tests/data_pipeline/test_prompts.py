"""Prompts against transformers' own tokenizer calls and against PhotoMaker's procedure."""

import json
from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.prompts import PromptError, Tokenizers, split_at_trigger
from persongen_jax.weights.tiny_tokenizer import SDXL_PAD_TOKENS, WORDS, write_tiny_tokenizer

PROMPT = "A photo of a woman img, wearing an orange space suit"
LONG = "a man in a red hat and " * 20


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    for name, pad_token in zip(("tokenizer", "tokenizer_2"), SDXL_PAD_TOKENS, strict=True):
        write_tiny_tokenizer(folder / name, pad_token)
    return folder


@pytest.fixture(scope="module")
def tokenizers(base):
    return Tokenizers.from_pretrained(base)


def reference_ids(tokenizer, prompt):
    return tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids


@pytest.mark.parametrize("prompt", [PROMPT, "", LONG, "wow!! grüße, 你好 \n 42's", "a " * 75])
def test_encode_equals_transformers(base, tokenizers, prompt):
    from transformers import CLIPTokenizer

    expected = [
        reference_ids(CLIPTokenizer.from_pretrained(base / name, local_files_only=True), prompt)
        for name in ("tokenizer", "tokenizer_2")
    ]
    ids = tokenizers.encode(prompt)
    assert ids.dtype == np.int32 and ids.shape == (2, 77)
    np.testing.assert_array_equal(ids, expected)


def test_many_are_encoded_as_each(tokenizers):
    prompts = [PROMPT, "", LONG, "wow!! grüße, 你好"]
    found = tokenizers.encode_many(prompts)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, [tokenizers.encode(prompt) for prompt in prompts])
    assert tokenizers.encode_many([]).shape == (0, 2, 77)
    with pytest.raises(ValueError, match="no additional words: <me>"):
        replace(tokenizers, words={"<me>": ((5,), (6,))}).encode_many(prompts)


def test_pads_as_sdxl_does(tokenizers):
    ids = tokenizers.encode("a man")
    bos, eos = tokenizers.tokenizer.bos_token_id, tokenizers.tokenizer.eos_token_id
    assert eos == bos + 1 == len(tokenizers.tokenizer) - 1
    assert ids[0, 0] == bos and set(ids[0, 3:]) == {eos}
    assert ids[1, 3] == eos and set(ids[1, 4:]) == {0}


def test_every_word_of_the_tiny_tokenizer_is_one_token(tokenizers):
    assert all(len(tokenizers.tokenizer(word).input_ids) == 3 for word in WORDS)


def test_tiny_tokenizer_is_deterministic_and_checks_its_pad_token(tmp_path):
    sizes = {write_tiny_tokenizer(tmp_path / name) for name in "ab"}
    assert len(sizes) == 1 and 512 < sizes.pop() < 1500
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(ValueError, match="'<pad>' is not in"):
        write_tiny_tokenizer(tmp_path / "c", "<pad>")


def test_cut_part(tokenizers):
    assert tokenizers.cut_part(PROMPT) == ""
    prompt = "a " * 74 + "man wearing a Hat"
    assert tokenizers.cut_part(prompt) == "wearing a Hat"
    assert tokenizers.cut_part(prompt, copies=2) == "man wearing a Hat"
    assert tokenizers.encode(prompt)[0, 75] == tokenizers.encode("man")[0, 1]
    assert tokenizers.encode(prompt)[0, 76] == tokenizers.tokenizer.eos_token_id


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_class_token_stands_once_per_reference(tokenizers, count):
    ids, mask, plain = tokenizers.encode_with_trigger(PROMPT, count)
    assert plain == "A photo of a woman, wearing an orange space suit"
    assert ids.shape == (2, 77) and ids.dtype == np.int32 and mask.dtype == bool
    # bos, a, photo, of, a | woman × count | the rest
    np.testing.assert_array_equal(np.flatnonzero(mask), 5 + np.arange(count))
    woman = tokenizers.encode("woman")[0, 1]
    np.testing.assert_array_equal(ids[:, mask], woman)
    untouched = tokenizers.encode(plain)
    np.testing.assert_array_equal(ids[:, :5], untouched[:, :5])
    np.testing.assert_array_equal(ids[:, 5 + count :], untouched[:, 6 : 77 - count + 1])


def test_one_reference_leaves_the_plain_prompt(tokenizers):
    for prompt in (PROMPT, "a man img's hat", "man img", "a  man   IMG   on", "a man img " + LONG):
        ids, _, plain = tokenizers.encode_with_trigger(prompt, 1)
        np.testing.assert_array_equal(ids, tokenizers.encode(plain))


def test_expansion_agrees_with_photomakers_procedure(tokenizers):
    """Ids of the whole prompt, trigger found by its id, class token repeated, cut to 77."""
    for prompt in (PROMPT, "a man img " + LONG):
        for row, tokenizer in enumerate((tokenizers.tokenizer, tokenizers.tokenizer_2)):
            raw = tokenizer(prompt).input_ids
            place = raw.index(tokenizer.convert_tokens_to_ids("img</w>"))
            expected = raw[: place - 1] + [raw[place - 1]] * 3 + raw[place + 1 :]
            expected = expected[:77] + [tokenizer.pad_token_id] * (77 - len(expected))
            ids, mask, _ = tokenizers.encode_with_trigger(prompt, 3)
            np.testing.assert_array_equal(ids[row, :76], expected[:76])
            assert mask[place - 1 : place + 2].all() and mask.sum() == 3
    assert ids[0, 76] == tokenizers.tokenizer.eos_token_id  # PhotoMaker would have lost it
    assert ids[1, 76] == tokenizers.tokenizer.eos_token_id


def test_trigger_of_several_tokens_and_class_word_of_several_tokens(tokenizers):
    ids, mask, plain = tokenizers.encode_with_trigger("a zqxman <me-7> on a beach", 2, "<me-7>")
    assert plain == "a zqxman on a beach"
    alone = tokenizers.encode("zqxman")[0]
    last = alone[np.flatnonzero(alone == tokenizers.tokenizer.eos_token_id)[0] - 1]
    np.testing.assert_array_equal(ids[:, mask], last)
    assert mask.sum() == 2


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a man in a suit", "appears 0 times"),
        ("a man with imgs, a timg and img_1", 'inside "imgs", not as a separate word'),
        ("a man img and a woman img", "appears 2 times"),
        ("img a man", "opens the prompt"),
        ("  img", "opens the prompt"),
        ("a man, img in a suit", 'follows a ","'),
        ("", "appears 0 times"),
    ],
)
def test_bad_triggers_are_errors_that_quote_the_prompt(tokenizers, prompt, message):
    with pytest.raises(PromptError, match=message) as caught:
        tokenizers.encode_with_trigger(prompt, 2)
    assert f'"{prompt}"' in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_trigger_at_the_end_of_the_room(tokenizers):
    fits = "a " * 71 + "man img in a hat"  # class word is token 72 of 75, three more copies fit
    ids, mask, _ = tokenizers.encode_with_trigger(fits, 4)
    np.testing.assert_array_equal(np.flatnonzero(mask), [72, 73, 74, 75])
    assert (ids[:, 76] == tokenizers.tokenizer.eos_token_id).all()
    with pytest.raises(PromptError, match="too late"):
        tokenizers.encode_with_trigger("a " + fits, 4)
    assert tokenizers.encode_with_trigger("a " + fits, 3)[1].sum() == 3


def test_a_cut_merges_file_is_refused(tmp_path):
    for name, pad in zip(("tokenizer", "tokenizer_2"), SDXL_PAD_TOKENS, strict=True):
        write_tiny_tokenizer(tmp_path / name, pad)
    merges = tmp_path / "tokenizer" / "merges.txt"
    lines = merges.read_text().splitlines()
    merges.write_text("\n".join(lines[:-1]))  # the last line's end may be missing, or one line
    Tokenizers.from_pretrained(tmp_path)
    for half in ("", "\n".join(lines[: len(lines) // 2])):
        merges.write_text(half)
        with pytest.raises(ValueError, match="merges.txt: .* tokens of vocab.json come from none"):
            Tokenizers.from_pretrained(tmp_path)


def test_what_else_lies_in_a_tokenizers_folder_does_not_matter(tmp_path):
    for name, pad in zip(("tokenizer", "tokenizer_2"), SDXL_PAD_TOKENS, strict=True):
        write_tiny_tokenizer(tmp_path / name, pad)
    folder = tmp_path / "tokenizer"
    (folder / "._tokenizer.json").write_bytes(b"\0\5\x16\7" * 9)
    (folder / "README.txt").write_bytes("für".encode("latin-1"))
    (folder / "old.json").mkdir()
    (folder / "link.json").symlink_to("nowhere")
    Tokenizers.from_pretrained(tmp_path)


def test_a_length_that_is_text(tmp_path):
    for name, pad in zip(("tokenizer", "tokenizer_2"), SDXL_PAD_TOKENS, strict=True):
        write_tiny_tokenizer(tmp_path / name, pad)
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("77", '"77"'))
    assert Tokenizers.from_pretrained(tmp_path).max_length == 77
    config.write_text(config.read_text().replace('"77"', '"many"'))
    with pytest.raises(ValueError, match="model_max_length is 'many'.*write a whole number"):
        Tokenizers.from_pretrained(tmp_path)


def test_tokenizers_that_place_the_class_word_differently(base, tmp_path):
    """As with real SDXL: "!!" is one token for the first tokenizer and two for the second."""
    vocab = json.loads((base / "tokenizer" / "vocab.json").read_text("utf-8"))
    merges = (base / "tokenizer" / "merges.txt").read_text("utf-8")
    for name, pad_token in zip(("tokenizer", "tokenizer_2"), SDXL_PAD_TOKENS, strict=True):
        write_tiny_tokenizer(tmp_path / name, pad_token)
        more = vocab | {"!!</w>": len(vocab)}
        (tmp_path / name / "vocab.json").write_text(json.dumps(more), "utf-8")
        (tmp_path / name / "merges.txt").write_text(merges + "! !</w>\n", "utf-8")
    tokenizers = Tokenizers.from_pretrained(tmp_path)
    with pytest.raises(PromptError, match="disagree"):
        tokenizers.encode_with_trigger("wow!! a man img", 2)
    tokenizers.encode_with_trigger("a man img, wow!!", 2)


def test_zero_references_are_refused(tokenizers):
    with pytest.raises(ValueError, match="copies is 0"):
        tokenizers.encode_with_trigger(PROMPT, 0)


def test_split_joins_to_the_plain_prompt():
    assert split_at_trigger("a man img in a suit") == ("a man", " in a suit")
    assert split_at_trigger("a man sks", "sks") == ("a man", "")


def test_missing_tokenizer_names_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer: no tokenizer there"):
        Tokenizers.from_pretrained(tmp_path)


def test_config_without_a_length_means_77_and_a_short_one_is_heeded(base, tmp_path):
    for name in ("tokenizer", "tokenizer_2"):
        write_tiny_tokenizer(tmp_path / name)
        path = tmp_path / name / "tokenizer_config.json"
        config = json.loads(path.read_text())
        del config["model_max_length"]
        path.write_text(json.dumps(config))
    assert Tokenizers.from_pretrained(tmp_path).encode("a man").shape == (2, 77)

    for name in ("tokenizer", "tokenizer_2"):
        path = tmp_path / name / "tokenizer_config.json"
        path.write_text(json.dumps({**config, "model_max_length": 16}))
    ids, mask, _ = Tokenizers.from_pretrained(tmp_path).encode_with_trigger(PROMPT, 4)
    assert ids.shape == (2, 16) and mask.shape == (16,) and mask.sum() == 4

    path.write_text(json.dumps({**config, "model_max_length": 20}))
    with pytest.raises(ValueError, match="16 in tokenizer and 20 in tokenizer_2"):
        Tokenizers.from_pretrained(tmp_path)


@pytest.mark.parametrize("c", "\u200b\u200d\ufeff\u00ad\u200f")
def test_invisible_characters_never_become_the_class_token(tokenizers, c):
    wanted = tokenizers.encode_with_trigger("a man img in a suit", 3)
    for prompt in (f"a man{c} img in a suit", f"a man {c}img{c} in a suit"):
        ids, mask, plain = tokenizers.encode_with_trigger(prompt, 3)
        assert np.array_equal(ids, wanted[0]) and np.array_equal(mask, wanted[1])
        assert plain == wanted[2]


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16"])
def test_tokenizer_files_that_an_editor_has_saved(tokenizers, base, tmp_path, coding):
    for name in ("tokenizer", "tokenizer_2"):
        (tmp_path / name).mkdir()
        for path in (base / name).iterdir():
            text = path.read_text("utf-8").replace("\n", "\r\n")
            (tmp_path / name / path.name).write_text(text, coding, newline="")
    found = Tokenizers.from_pretrained(tmp_path)
    for prompt in (PROMPT, "wow!! grüße, 你好"):
        np.testing.assert_array_equal(found.encode(prompt), tokenizers.encode(prompt))
    (tmp_path / "tokenizer" / "vocab.json").write_text('{"a": 0,\n', "utf-8")
    with pytest.raises(ValueError, match=r"vocab\.json line 2: not JSON"):
        Tokenizers.from_pretrained(tmp_path)
