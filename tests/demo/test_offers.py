"""Which models the page offers, and how many of them stay in memory."""

import pytest

from persongen_jax.demo.__main__ import parse_arguments, read_passwords
from persongen_jax.demo.offers import ASSETS, Models, Offer, offers


def test_without_options_the_miniature_and_its_adapter():
    adapter, base = offers("", loras=["a.safetensors@0.5"])
    assert adapter.weights == str(ASSETS / "photomaker-v1.safetensors")
    assert base.base == adapter.base == str(ASSETS / "sdxl") and not base.weights
    assert adapter.loras == base.loras == ("a.safetensors@0.5",)


def test_files_of_one_name_are_told_apart():
    found = offers("/sdxl", files=["/x/a/model.bin", "/y/a/model.bin"], encoder="/clip")
    assert [each.name for each in found] == ["/x/a/model.bin", "/y/a/model.bin", "base alone"]
    assert found[0].encoder == "/clip" and not found[2].encoder
    assert [o.name for o in offers("/sdxl", files=["/x/a.bin"])] == ["x/a.bin", "base alone"]


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint in it"):
        offers("", runs=[str(tmp_path)])
    with pytest.raises(ValueError, match="--image-encoder: it goes with a file"):
        offers("/sdxl", encoder="/clip")


def test_a_model_is_opened_once_and_few_stay():
    opened = []

    def opening(offer):
        opened.append(offer.name)
        return object()

    made = [Offer(name, "/sdxl") for name in "abc"]
    models = Models(made, 2, opening)
    first = models.open(made[0])
    models.open(made[1])
    assert models.open(made[0]) is first and opened == ["a", "b"]
    models.open(made[2])  # b has not been used for the longest time
    assert models.open(made[0]) is first
    models.open(made[1])
    assert opened == ["a", "b", "c", "b"]
    with pytest.raises(ValueError, match="there is no model 'd'"):
        models.named("d")
    with pytest.raises(ValueError, match="--models 0"):
        Models(made, 0)


def test_the_page_is_this_machines_alone_unless_told():
    assert parse_arguments([]).host == "127.0.0.1"


def test_who_may_enter(tmp_path):
    file = tmp_path / "passwords"
    file.write_text("anna:a:b\n\nbert:c\n")
    assert read_passwords(file) == [("anna", "a:b"), ("bert", "c")]
    file.write_text("anna\n")
    with pytest.raises(ValueError, match="line 1: write USER:PASSWORD"):
        read_passwords(file)
    file.write_text("\n")
    with pytest.raises(ValueError, match="nobody in it"):
        read_passwords(file)
