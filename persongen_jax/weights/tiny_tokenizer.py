"""A small CLIP tokenizer, trained on the spot, for use without any download.

It has CLIP's structure: the 256 byte symbols, the same with ``</w>``, one entry per merge, then
``<|startoftext|>`` and ``<|endoftext|>`` as the two highest ids. It encodes every text; the words
listed here, including ``img``, become one token each, as in CLIP.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
# The padding of SDXL's two tokenizers: <|endoftext|>, and the symbol with id 0.
SDXL_PAD_TOKENS = (EOS, "!")

WORDS = """
a an the and of in on at by to with without for from near under over behind before beside inside
is are was wearing holding standing sitting walking running riding looking smiling
photo picture portrait painting drawing grey black white red orange yellow green blue purple pink
brown golden dark bright old young small large tall beautiful
img man woman person boy girl child people face head hair beard eyes glasses hat helmet
suit space dress shirt jacket coat armor uniform scarf tie
background flag shuttle model sky sea snow beach forest mountain mountains castle street city
night day sun desert garden room house window wall shelf car horse dog cat tree trees flowers
camel palm king knight doctor chef astronaut superhero her his she he they wears
close up view front side style cinematic film light colour colourful high quality low bad
worst lowres blurry anatomy hands text error missing fingers extra digit fewer digits cropped
normal jpeg artifacts signature watermark username
""".split()


def write_tiny_tokenizer(
    folder: str | os.PathLike, pad_token: str = EOS, words: Iterable[str] = ()
) -> int:
    """Write a tokenizer that transformers' CLIPTokenizer opens offline; return its vocabulary size.
    The start and the end of text have the ids size - 2 and size - 1.

    ``folder`` is created if necessary. ``pad_token`` is any entry of the vocabulary; SDXL's two are
    in ``SDXL_PAD_TOKENS``. ``words`` are additional ASCII words that become one token each. The
    same code writes the same bytes.
    """
    merges = _learn_merges(Counter([*WORDS, *(word for word in words if word not in WORDS)]))
    # One printable character per byte. In CLIP's order those come first that stand for themselves;
    # the others borrow the characters from U+0100 on, because a merges file is split at blanks.
    symbols = sorted(ByteLevel.alphabet())
    entries = [*symbols, *(s + "</w>" for s in symbols), *("".join(m) for m in merges), BOS, EOS]
    if pad_token not in entries:
        raise ValueError(f"pad_token {pad_token!r} is not in the tiny tokenizer's vocabulary")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
    }
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad_token}

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "vocab.json", {entry: i for i, entry in enumerate(entries)})
    _write_json(folder / "tokenizer_config.json", {**config, **special})
    _write_json(folder / "special_tokens_map.json", special)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(entries)


def _learn_merges(words: Counter) -> list[tuple[str, str]]:
    """Byte-pair encoding of ASCII words until each is one symbol; ties go to the smaller pair."""
    split = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges = []
    while True:
        pairs = Counter()
        for word, symbols in split.items():
            for pair in pairwise(symbols):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = {word: _merge(symbols, best) for word, symbols in split.items()}


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    merged = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def _write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
