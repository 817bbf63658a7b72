"""Prompts, the input that both text towers read, as a field."""

import functools
from typing import Any

import numpy as np

from data_pipeline.examples.fields import Batch, Call, EncodedField, Encoding, Example, Input, Spec
from data_pipeline.prompt_syntax import plain_syntax
from data_pipeline.prompts import Tokenizers, join_parts, without_trigger
from data_pipeline.records.schema import MAX_REFERENCES, OWN, PARTS, Record, record_text

KEPT_PROMPTS = 1 << 16  # whose token ids are cached, about 1.5 KB each
SHOWN_SYNTAX = 3  # sentences


class Text(EncodedField):
    """The caption and additional prompts of a record.

        input_ids/text       [2, n] int32  for both tokenizers; with ``at_trigger`` without the
                                           trigger word, and ``copies`` of the class token per
                                           reference
        input_ids/STREAM     [2, n] int32  an additional prompt, unchanged ("" if there is none)
        class_tokens_mask    [n] bool      with ``at_trigger``: True at the class token's copies

    Parts of a record (background, body) without a stream of their own are joined to the caption.
    With the ``encoding`` a cache stores the text towers' states instead (docs/cache.md):

        text_states/STREAM   [n, d], text_states/pooled [p] of "text"
        text_states/empty    [n, d], text_states/empty_pooled [p]: the empty prompt's, in every row

    Args:
        tokenizers: data_pipeline.prompts.Tokenizers.
        streams: names of prompts; "text" is the caption, others are the record's own
            (``background``, ``body``, or a key of the manifest).
        trigger_word: follows the class word in captions.
        at_trigger: whether the identity enters at the class word, so that a caption must mark it.
            Otherwise a caption may contain the trigger word, and it is removed.
        copies: of the class token, for each reference.
    """

    name = "text"

    def __init__(
        self,
        tokenizers: Tokenizers,
        streams: tuple[str, ...] = ("text",),
        *,
        trigger_word: str = "img",
        at_trigger: bool = True,
        copies: int = 1,
        encoding: Encoding | None = None,
    ):
        if "text" not in streams:
            raise ValueError(f'streams {tuple(streams)}: "text", the caption, must be among them')
        self.tokenizers, self.streams = tokenizers, tuple(streams)
        self.trigger_word, self.at_trigger, self.encoding = trigger_word, at_trigger, encoding
        self.copies = copies
        self.keys = tuple(name for name in self.streams if name not in OWN and name != "text")
        self._ids = functools.lru_cache(KEPT_PROMPTS)(self._encode)
        # Found by ``check``: stream to (count, the first); sentence to image.
        self._cut, self._syntax = {}, {}

    @property
    def further(self) -> tuple[str, ...]:
        """The streams other than "text"."""
        return tuple(name for name in self.streams if name != "text")

    # ---- its arrays ----

    def spec(self, shape: tuple[int, int]) -> Spec:
        length = self.tokenizers.max_length
        spec = {f"input_ids/{name}": ((2, length), np.dtype(np.int32)) for name in self.streams}
        return spec | self._mask_spec()

    def _mask_spec(self):
        length = self.tokenizers.max_length
        return {"class_tokens_mask": ((length,), np.dtype(bool))} if self.at_trigger else {}

    def row_spec(self, shape: tuple[int, int], rows: Spec) -> Spec:
        spec = {f"text_states/{name}": rows["states"] for name in (*self.streams, "empty")}
        spec |= {f"text_states/{name}": rows["pooled"] for name in ("pooled", "empty_pooled")}
        return spec | self._mask_spec()

    def input_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        return (2, self.tokenizers.max_length)

    # ---- from records ----

    def inputs(self, example: Example) -> list[Input]:
        ids, _ = self._caption_ids(example)
        texts = [self._ids(record_text(example.record, name))[0] for name in self.further]
        return [self._input(ids) for ids in (ids, *texts, self._ids("")[0])]

    def _caption_ids(self, example):
        # One if none is read, or if none decodes, which rejects this record.
        count = self._copies_for(len(example.references))
        return self._ids(self.caption(example.record), count)

    def _copies_for(self, references: int) -> int | None:
        """Of the class token; None if the caption does not mark it."""
        return self.copies * max(1, references) if self.at_trigger else None

    @staticmethod
    def _input(ids):
        return Input(lambda: (ids,), lambda: ids, ids.shape)

    def join(self, example: Example, values: list) -> dict[str, np.ndarray]:
        made = {
            f"input_ids/{name}": ids
            for name, ids in zip(("text", *self.further), values, strict=False)
        }
        return made | self._marks(example)

    def join_rows(self, example: Example, rows: list[dict]) -> dict[str, np.ndarray]:
        text, *further, empty = rows
        made = {"text_states/text": text["states"], "text_states/pooled": text["pooled"]}
        for name, row in zip(self.further, further, strict=True):
            made[f"text_states/{name}"] = row["states"]
        made |= {"text_states/empty": empty["states"], "text_states/empty_pooled": empty["pooled"]}
        return made | self._marks(example)

    def _marks(self, example):
        return {"class_tokens_mask": self._caption_ids(example)[1]} if self.at_trigger else {}

    def all_inputs(self, source: Any, record: Record) -> list[Input]:
        most = source.most_references(record)
        counts = dict.fromkeys(map(self._copies_for, range(1, most + 1)))
        ids = [self._ids(self.caption(record), count)[0] for count in counts]
        ids += [self._ids(record_text(record, name))[0] for name in self.further]
        return [self._input(i) for i in (*ids, self._ids("")[0])]

    def caption(self, record: Record) -> str:
        """The caption, followed by the parts without a stream of their own.

        Without ``at_trigger`` the trigger word is removed.
        """
        parts = (getattr(record, name) for name in PARTS if name not in self.streams)
        caption = record.caption if self.at_trigger else self.without_trigger(record.caption)
        return join_parts(caption, *parts)

    def check(self, record: Record, others: int) -> None:
        most = self._copies_for(min(others, MAX_REFERENCES))
        texts = {"text": self.caption(record)}
        texts |= {name: record_text(record, name) for name in self.further}
        for name, text in texts.items():
            copies = most if name == "text" else None
            for line in plain_syntax(text):
                self._syntax.setdefault(line, record.image)
            if self.tokenizers.is_full(self._ids(text, copies)[0]):
                plain = self.without_trigger(text) if copies else text
                self._count_cut(name, record, self.tokenizers.cut_part(plain, copies or 1))

    def _count_cut(self, name, record, cut):
        if cut:
            count, first = self._cut.get(name, (0, (record.image, cut)))
            self._cut[name] = count + 1, first

    def notes(self) -> list[str]:
        cut, self._cut, syntax, self._syntax = self._cut, {}, self._syntax, {}
        length = self.tokenizers.max_length
        return [
            f"cut at the {length} tokens that are read: {count} of the "
            f"{'captions' if name == 'text' else f'texts {name!r}'}; of {image} this part is lost: "
            f'"{part}"'
            for name, (count, (image, part)) in cut.items()
        ] + [f"{image}: {line}" for line, image in list(syntax.items())[:SHOWN_SYNTAX]]

    def _encode(self, prompt: str, copies: int | None = None):
        """(ids, class_tokens_mask or None) with these copies; None: for a plain text.

        Read-only, because they are shared.
        """
        if copies is None:
            ids, mask = self.tokenizers.encode(prompt), None
        else:
            ids, mask, _ = self.tokenizers.encode_with_trigger(prompt, copies, self.trigger_word)
            mask.setflags(write=False)
        ids.setflags(write=False)
        return ids, mask

    def without_trigger(self, prompt: str) -> str:
        """The prompt without the trigger word wherever it is a separate word."""
        return without_trigger(prompt, self.trigger_word)

    # ---- from a call ----

    def read(self, prompt: str, references: int) -> tuple[np.ndarray, np.ndarray, str]:
        """ids [2, n], class_tokens_mask [n], and the prompt without its trigger word.

        PromptError unless the prompt marks where the identity goes, for a method that needs it.
        """
        if self.at_trigger and references:
            copies = self.copies * references
            return self.tokenizers.encode_with_trigger(prompt, copies, self.trigger_word)
        text = self.without_trigger(prompt)
        ids = self.tokenizers.encode(text)
        return ids, np.zeros(ids.shape[1], bool), text

    def given(self, call: Call) -> dict[str, np.ndarray]:
        counts = [0] * len(call.prompts)
        if call.people is not None:
            counts = [len(persons[0]) for persons in call.people]
        read = [self.read(*row) for row in zip(call.prompts, counts, strict=True)]
        arrays = {"input_ids/text": np.stack([ids for ids, _, _ in read])}
        for name in self.further:
            texts = call.parts.get(name) or [None] * len(read)
            ids = [self.tokenizers.encode(text or "") for text in texts]
            arrays[f"input_ids/{name}"] = np.stack(ids)
        if self.at_trigger:
            arrays["class_tokens_mask"] = np.stack([mask for _, mask, _ in read])
        return arrays

    # ---- without the condition ----

    def dropped(self, batch: Batch, xp: Any) -> dict:
        """The empty prompt on every stream, and no class token marked."""
        mask = "class_tokens_mask"
        out = {mask: xp.zeros_like(batch[mask])} if mask in batch else {}
        if "text_states/text" in batch:
            empty, pooled = batch["text_states/empty"], batch["text_states/empty_pooled"]
            out |= {f"text_states/{name}": empty for name in self.streams}
            return out | {"text_states/pooled": pooled}
        ids = self._ids("")[0]
        return out | {
            f"input_ids/{name}": xp.broadcast_to(ids, batch[f"input_ids/{name}"].shape)
            for name in self.streams
        }
