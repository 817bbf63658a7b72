"""A tiny random Qwen2.5-VL of the right classes: it opens, sees the picture, and its nonsense is
caught by the contract."""

import numpy as np
import pytest

from data_pipeline.collect.captions.base import View
from data_pipeline.collect.captions.contract import PROMPT
from data_pipeline.collect.captions.opening import open_captioner
from data_pipeline.collect.captions.write import write_captions
from data_pipeline.collect.settings import Caption

pytestmark = pytest.mark.slow
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
SPECIAL += ("<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLImageProcessorPil,
    )

    folder = tmp_path_factory.mktemp("qwen")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )
    fast.save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    ids = {token: fast.convert_tokens_to_ids(token) for token in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(fast),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3],
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def settings(folder):
    return Caption(captioner=f"qwen:{folder}", max_new_tokens=12, retries=1, max_pixels=56 * 112)


@pytest.fixture(scope="module")
def qwen(settings):
    return open_captioner(settings)


def view(key, image):
    return View(key, image, "Maria Example", 0.3, 40.0)


@pytest.fixture(scope="module")
def views():
    rng = np.random.default_rng(0)
    shapes = ((64, 64), (120, 120), (90, 90))
    images = [rng.integers(0, 255, (*shape, 3), np.uint8) for shape in shapes]
    return [view(str(n), image) for n, image in enumerate(images)]


def test_the_prompt_has_a_place_for_every_patch(qwen, views):
    inputs = qwen._inputs(views)
    places = inputs["mm_token_type_ids"].sum(-1)
    merged = inputs["image_grid_thw"].prod(-1) // 4
    assert places.tolist() == merged.tolist() and (inputs["input_ids"][:, -1] >= 0).all()
    assert inputs["attention_mask"][:, -1].all()  # padded on the left
    text = qwen._tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True)
    assert PROMPT in text


def test_a_batch_answers_as_each_alone_and_seeds_repeat(qwen, views):
    together = qwen.ask(views, 0)
    assert together == [qwen.ask([one], 0)[0] for one in views]
    assert qwen.ask(views[:1], 2) == qwen.ask(views[:1], 2) != qwen.ask(views[:1], 3)


def test_the_picture_is_seen(qwen, views):
    import torch

    inputs = qwen._inputs(views[:1])
    with torch.inference_mode():
        seen = qwen._model(**inputs).logits
        inputs["pixel_values"] = inputs["pixel_values"] + 1
        assert not torch.allclose(seen, qwen._model(**inputs).logits)


def test_nonsense_becomes_the_template_and_says_so(qwen, settings, views):
    for found in write_captions(views, qwen, settings):
        assert found.captioner == "template" and found.tries == 2
        assert found.fallback.startswith("Qwen2.5-VL: ") and len(found.prompt) == 12
    assert qwen.revision.startswith("files ")
