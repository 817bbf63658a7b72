"""Files of words' embeddings: every form is read, written and told apart, or refused by name."""

import ml_dtypes
import numpy as np
import pytest

from persongen_jax.convert.identify import identify
from persongen_jax.convert.importing import import_file
from persongen_jax.weights.errors import MissingFile, UnsafePickle, WeightsError
from persongen_jax.weights.files.directory import open_file
from persongen_jax.weights.formats.embeddings.reading import read_embeddings
from persongen_jax.weights.formats.embeddings.writing import WRITTEN_FORMS, write_embeddings
from tests.helpers.lora_files import save

L, G = 768, 1280
SAME = {"clip_l": 8, "clip_g": 8}


def draw(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


ROWS = {"clip_l": draw(2, L), "clip_g": draw(2, G, seed=1)}


def same(found, wanted):
    """Of one word: the same towers, bit-equal rows of the same dtype."""
    assert found.keys() == wanted.keys()
    for tower, rows in wanted.items():
        assert found[tower].dtype == rows.dtype
        np.testing.assert_array_equal(found[tower], rows)


FORM_FILES = {
    "diffusers": "<me>",
    "kohya": "me.safetensors",
    "pivotal": "run_emb.safetensors",
    "pti": "embeddings.pti",
    "a1111-sd1": "me.pt",
}


@pytest.mark.parametrize("form", WRITTEN_FORMS)
def test_what_is_written_is_read_back(form, tmp_path):
    if form == "a1111-sd1":
        pytest.importorskip("torch")
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        rows = {tower: each.astype(dtype) for tower, each in ROWS.items()}
        if form == "a1111-sd1":
            rows.pop("clip_g")
        path = tmp_path / np.dtype(dtype).name / FORM_FILES[form]
        path.parent.mkdir()
        files = write_embeddings(path, "<me>", rows, form)
        for where in (path, *files):  # one file of diffusers' two brings the other
            ((word, found),) = read_embeddings(where).items()
            assert word == "<me>"
            same(found, rows)
        found = identify(path)
        assert found.kind == "embedding" and found.facts["words"] == "<me>"
        assert found.facts["vectors of a word"] == "2"


def tensors_of(form, rows):
    """The file's tensors as their own tools write them: without our metadata."""
    return {
        "diffusers": {"<me>": rows["clip_l"]},
        "diffusers, one vector": {"<me>": rows["clip_l"][0]},
        "diffusers, names": {"<me>_1": rows["clip_l"][1], "<me>": rows["clip_l"][:1]},
        "kohya": {"clip_l": rows["clip_l"], "clip_g": rows["clip_g"]},
        "pti": {"text_encoders_0": rows["clip_l"], "text_encoders_1": rows["clip_g"]},
        "sd1": {"emb_params": rows["clip_l"]},
    }[form]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("diffusers", {"<me>": ("clip_l",)}),
        ("diffusers, one vector", {"<me>": ("clip_l",)}),
        ("diffusers, names", {"<me>": ("clip_l",)}),
        ("kohya", {"hero": ("clip_l", "clip_g")}),
        ("pti", {"<s0>": ("clip_l", "clip_g"), "<s1>": ("clip_l", "clip_g")}),
        ("sd1", {"hero": ("clip_l",)}),
    ],
)
def test_the_words_of_other_tools_files(form, words, tmp_path):
    path = save(tmp_path / "hero.safetensors", tensors_of(form, ROWS))
    found = read_embeddings(path)
    assert {word: tuple(towers) for word, towers in found.items()} == words
    for i, towers in enumerate(found.values()):
        part = slice(i, i + 1) if len(words) > 1 else slice(1 if "one vector" in form else 2)
        same(towers, {tower: ROWS[tower][part] for tower in towers})
    ((word, towers),) = read_embeddings(path, token="you").items()  # all rows are one word's
    assert word == "you" and len(towers["clip_l"]) == (1 if "one vector" in form else 2)
    assert identify(path).kind == "embedding"


def test_torchs_files_and_that_nothing_runs(tmp_path):
    torch = pytest.importorskip("torch")
    rows = torch.from_numpy(ROWS["clip_l"].copy())
    sd1 = {"string_to_token": {"*": torch.tensor(265)}, "name": "hero", "step": 500}
    sd1 |= {"string_to_param": {"*": torch.nn.Parameter(rows)}, "sd_checkpoint_name": None}
    wanted = {"clip_l": ROWS["clip_l"]}
    for name, content, word in (
        ("a.pt", sd1, "hero"),
        ("b.bin", {"<me>": rows}, "<me>"),
        ("c.pt", {"clip_l": rows}, "c"),
        ("d.pti", {"text_encoders_0": rows}, "d"),
    ):
        torch.save(content, tmp_path / name)
        found = read_embeddings(tmp_path / name, token="" if word != "d" else "d")
        assert list(found) == [word]
        same(found[word], wanted)
        assert identify(tmp_path / name).kind == "embedding"
    torch.save({**sd1, "string_to_param": torch.nn.ParameterDict({"*": rows})}, tmp_path / "e.pt")
    with pytest.raises(UnsafePickle, match="Nothing was executed"):
        read_embeddings(tmp_path / "e.pt")


def test_pairs_and_folders(tmp_path):
    first = save(tmp_path / "me-steps-500.safetensors", {"<me>": ROWS["clip_l"]})
    second = save(tmp_path / "me_2-steps-500.safetensors", {"<me>": ROWS["clip_g"]})
    wanted = {"clip_l": ROWS["clip_l"], "clip_g": ROWS["clip_g"]}
    named = {"clip_l": first, "clip_g": second}
    for files in (first, second, [first, second], [second, first], named):
        same(read_embeddings(files)["<me>"], wanted)
    # Two words that happen to be called so: each is its own.
    save(second, {"<you>": ROWS["clip_g"]})
    same(read_embeddings(first)["<me>"], {"clip_l": ROWS["clip_l"]})
    assert set(read_embeddings([first, second])) == {"<me>", "<you>"}
    with pytest.raises(MissingFile, match="without learned_embeds.*me-steps-500"):
        read_embeddings(tmp_path)
    write_embeddings(tmp_path / "run", "<me>", {"clip_g": ROWS["clip_g"]})
    same(read_embeddings(tmp_path / "run")["<me>"], {"clip_g": ROWS["clip_g"]})


def test_towers_of_one_width_are_told_by_name(tmp_path):
    rows = {tower: draw(1, 8, seed=seed) for seed, tower in enumerate(SAME)}
    write_embeddings(tmp_path / "run", "<me>", rows)
    for path in (tmp_path / "run", tmp_path / "run" / "learned_embeds_2.safetensors"):
        same(read_embeddings(path, SAME)["<me>"], rows)
    path = save(tmp_path / "me.safetensors", {"<me>": rows["clip_g"]})
    with pytest.raises(WeightsError, match='both text encoders are 8 wide.*{"clip_l": path}'):
        read_embeddings(path, SAME)
    same(read_embeddings({"clip_g": path}, SAME)["<me>"], {"clip_g": rows["clip_g"]})


def test_a_word_for_each_vector(tmp_path):
    path = save(tmp_path / "a_emb.safetensors", tensors_of("kohya", ROWS))
    found = read_embeddings(path, token=["<s0>", "<s1>"])
    for i, word in enumerate(("<s0>", "<s1>")):
        same(found[word], {tower: rows[i : i + 1] for tower, rows in ROWS.items()})
    for token in (["<s0>"], ["a", "a"], ["a", "b", "c"]):
        with pytest.raises(WeightsError, match="has 2 vectors, and .* words"):
            read_embeddings(path, token=token)
    several = save(tmp_path / "b.safetensors", {"<a>": ROWS["clip_l"], "<b>": ROWS["clip_l"]})
    assert list(read_embeddings(several)) == ["<a>", "<b>"]
    with pytest.raises(WeightsError, match="holds the words <a>, <b>"):
        read_embeddings(several, token="c")


def damaged(rows, value):
    rows = rows.copy()
    rows[0, 0] = value
    return rows


REFUSED = {
    "sd 2, diffusers": ({"<me>": draw(1, 1024)}, "1024 wide, as SD 2.x's are.*for SDXL"),
    "sd 2, a1111": ({"emb_params": draw(1, 1024)}, r"\[1, 1024\] \(SD 2.x's\).*width 768.*SDXL"),
    "another width": ({"<me>": draw(1, 5)}, "5 wide, but this base needs 768 for text_encoder"),
    "towers exchanged": ({"clip_l": draw(1, G)}, "clip_l has shape .*1280.*has width 768"),
    "other counts": ({"clip_l": draw(1, L), "clip_g": draw(2, G)}, "1 vectors .* 2 vectors"),
    "not finite": ({"<me>": damaged(ROWS["clip_g"], np.inf)}, "not finite. Use an earlier"),
    "nan": ({**ROWS, "clip_l": damaged(ROWS["clip_l"], np.nan)}, "not finite"),
    "no rows": ({"clip_l": draw(0, L)}, r"shape \[0, 768\]"),
    "sd 3": ({**ROWS, "t5xxl": draw(2, 4096)}, "t5xxl.*for SDXL|for SDXL(.|\n)*t5xxl"),
    "two parameters": (
        {"string_to_param.*": draw(1, L), "string_to_param.x": draw(1, L)},
        "string_to_param.x",
    ),
    "a lora": (
        {"unet.a.to_q.lora.down.weight": draw(4, L), "unet.a.to_q.lora.up.weight": draw(L, 4)},
        "is a LoRA in diffusers' style, and no embedding",
    ),
    "a whole table": ({"x": draw(100, L)}, "of no layout that is known here, and no embedding"),
    "nothing": ({}, "and no embedding of words"),
    "an empty word": ({" ": draw(1, L)}, "' ' is no word that a prompt can contain"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, tmp_path):
    tensors, message = REFUSED[name]
    path = save(tmp_path / "a.safetensors", tensors)
    with pytest.raises(WeightsError, match=message) as caught:
        read_embeddings(path)
    assert str(path) in str(caught.value)


def test_files_that_do_not_go_together(tmp_path):
    first = save(tmp_path / "a.safetensors", {"<me>": ROWS["clip_l"]})
    second = save(tmp_path / "b.safetensors", {"<me>": ROWS["clip_l"]})
    with pytest.raises(WeightsError, match="both have an embedding of <me> for text_encoder"):
        read_embeddings([first, second])
    kohya = save(tmp_path / "c.safetensors", tensors_of("kohya", ROWS))
    with pytest.raises(WeightsError, match="for text_encoder, not for text_encoder_2"):
        read_embeddings({"clip_g": kohya})
    with pytest.raises(WeightsError, match="'clip_x': no tower has this name"):
        read_embeddings({"clip_x": kohya})
    with pytest.raises(MissingFile, match="give at least one"):
        read_embeddings([])
    with pytest.raises(MissingFile, match="gone"):
        read_embeddings(tmp_path / "gone.safetensors")


def test_what_is_not_written(tmp_path):
    def refused(match, path="a.safetensors", word="<me>", rows=ROWS, form="kohya"):
        with pytest.raises(WeightsError, match=match):
            write_embeddings(tmp_path / path, word, rows, form)

    refused("form 'a1111' is unknown; known: diffusers", form="a1111")
    refused("must be one of .pt, .bin", form="a1111-sd1")
    refused("extension must be one of", path="a.pti")
    refused("'' is no word", word="")
    refused("rows of no tower", rows={})
    refused("rows of 'unet'", rows={"unet": draw(1, 4)})
    refused("2 for clip_l and 1 for clip_g", rows={**ROWS, "clip_g": draw(1, G)})
    refused("not finite", rows={"clip_l": damaged(ROWS["clip_l"], np.nan)})
    refused("holds the rows of clip_l", "a.pt", rows={"clip_g": draw(1, G)}, form="a1111-sd1")
    assert not list(tmp_path.iterdir())


def test_sd1s_form_says_what_it_leaves_out(tmp_path):
    pytest.importorskip("torch")
    with pytest.warns(UserWarning, match="no place for '<me>' in text_encoder_2"):
        write_embeddings(tmp_path / "me.pt", "<me>", ROWS, "a1111-sd1")
    same(read_embeddings(tmp_path / "me.pt")["<me>"], {"clip_l": ROWS["clip_l"]})


def test_import_writes_one_file_of_both_towers(tmp_path):
    write_embeddings(tmp_path / "run", "<me>", ROWS)
    said = import_file(tmp_path / "run", tmp_path / "me.safetensors")
    assert "'<me>' in kohya's form (vectors of text_encoder: 2, text_encoder_2: 2)" in said
    with open_file(tmp_path / "me.safetensors") as file:
        assert set(file.keys()) == {"clip_l", "clip_g"}
        same({key: file.read(key) for key in ROWS}, ROWS)
