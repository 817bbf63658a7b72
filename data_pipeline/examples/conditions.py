"""Inputs of identity methods other than the target, as fields: prompts and references."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipeline.examples.fields import Batch, Call, EncodedField, Encoding, Example, Input, Spec
from data_pipeline.faces.face import Face
from data_pipeline.pictures.reading import load_image
from data_pipeline.pictures.transforms import (
    clip_crop,
    clip_normalise,
    clip_preprocess,
    square_face_crop,
)
from data_pipeline.prompt_syntax import TextFaults
from data_pipeline.prompts import Tokenizers, join_parts, without_trigger
from data_pipeline.records.schema import MAX_REFERENCES, OWN, PARTS, Record

KEPT_PROMPTS = 1 << 16  # whose token ids are cached, about 1.5 KB each


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
        self.further = tuple(name for name in self.streams if name != "text")
        self.keys = tuple(name for name in self.further if name not in OWN)
        self._ids = functools.lru_cache(KEPT_PROMPTS)(self._encode)
        self._found = TextFaults()  # by ``check``

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
        return self._inputs(example.record, [ids])

    def _inputs(self, record, captions):
        texts = (*self._further_texts(record).values(), "")
        return [self._input(ids) for ids in (*captions, *(self._ids(text)[0] for text in texts))]

    def _caption_ids(self, example):
        # One copy if no reference is read, or if none decodes, which rejects this record.
        return self._ids(self.caption(example.record), self._copies_for(len(example.references)))

    def _copies_for(self, references: int) -> int | None:
        """Of the class token; None if the caption does not mark it."""
        return self.copies * max(1, references) if self.at_trigger else None

    @staticmethod
    def _input(ids):
        return Input(lambda: (ids,), lambda: ids, ids.shape)

    def join(self, example: Example, values: list) -> dict[str, np.ndarray]:
        names = (f"input_ids/{name}" for name in ("text", *self.further))
        return dict(zip(names, values, strict=False)) | self._marks(example)

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
        return self._inputs(record, [self._ids(self.caption(record), n)[0] for n in counts])

    def caption(self, record: Record) -> str:
        """The caption, followed by the parts without a stream of their own.

        Without ``at_trigger`` the trigger word is removed.
        """
        parts = (getattr(record, name) for name in PARTS if name not in self.streams)
        caption = record.caption if self.at_trigger else self.without_trigger(record.caption)
        return join_parts(caption, *parts)

    def _further_texts(self, record):
        """Additional prompts by stream; "" where the record has none."""
        texts = {}
        for name in self.further:
            text = getattr(record, name) if name in OWN else (record.extra or {}).get(name)
            if not isinstance(text, str | None):
                raise ValueError(f"{name} is {text!r}; give a text")
            texts[name] = text or ""
        return texts

    def check(self, record: Record, others: int) -> None:
        most = self._copies_for(min(others, MAX_REFERENCES))
        for name, text in ({"text": self.caption(record)} | self._further_texts(record)).items():
            copies = most if name == "text" else None
            self._found.add_syntax(text, record.image)
            if self.tokenizers.is_full(self._ids(text, copies)[0]):
                plain = self.without_trigger(text) if copies else text
                cut = self.tokenizers.cut_part(plain, copies or 1)
                self._found.add_cut(name, record.image, cut)

    def notes(self) -> list[str]:
        found, self._found = self._found, TextFaults()
        return found.lines(self.tokenizers.max_length)

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
        people = [[()]] * len(call.prompts) if call.people is None else call.people
        rows = zip(call.prompts, people, strict=True)
        read = [self.read(prompt, len(persons[0])) for prompt, persons in rows]
        arrays = {"input_ids/text": np.stack([ids for ids, _, _ in read])}
        for name in self.further:
            texts = call.parts.get(name) or [None] * len(read)
            arrays[f"input_ids/{name}"] = np.stack([self._ids(text or "")[0] for text in texts])
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


class References(EncodedField):
    """1 to 4 other images of the identity, never the target's own file.

        id_pixel_values  [4, s, s, 3] float32  face crops, normalised for CLIP; zeros if absent
        id_mask          [4] bool              True where there is a reference

    With the ``encoding`` a cache stores "id_features" [4, ...] instead. The four places of each
    person of a call are adjacent, [b, people * 4, ...]. A second field gets the same images.

    Args:
        size: s, the side in pixels that the image tower reads.
        prefix: of the arrays' names, instead of "id".
        whole: the whole images instead of the faces. A call may pass them by the field's name, per
            prompt a photograph or a list of them; otherwise they are its references as they are.

    Attributes:
        paired: whether what is passed by name must be as many as the call's references.
    """

    others, identity = 1, True
    paired = False

    def __init__(
        self,
        size: int,
        encoding: Encoding | None = None,
        *,
        name: str = "references",
        prefix: str = "id",
        whole: bool = False,
    ):
        self.size, self.encoding, self.name = size, encoding, name
        self.whole = self.by_name = whole
        self.pixels, self.features, self.mask = (
            f"{prefix}_{what}" for what in ("pixel_values", "features", "mask")
        )

    def spec(self, shape: tuple[int, int]) -> Spec:
        pixels = (MAX_REFERENCES, *self.input_shape(shape))
        return {self.pixels: (pixels, np.dtype(np.float32))} | self._mask_spec()

    def _mask_spec(self):
        return {self.mask: ((MAX_REFERENCES,), np.dtype(bool))}

    def input_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        return (self.size, self.size, 3)

    def row_spec(self, shape: tuple[int, int], rows: Spec) -> Spec:
        features, dtype = rows["features"]
        return {self.features: ((MAX_REFERENCES, *features), dtype)} | self._mask_spec()

    # ---- from records ----

    def of(self, source: Any, record: Record) -> Input:
        """The input for a record's image as a reference."""

        def key():
            box = self._box(source, record)
            box = box and tuple(map(float, box))
            return (source.features.picture_of(source, record.image).digest, box, self.size)

        def make():
            return clip_normalise(self.crop(source, record))

        return Input(key, make, (self.size, self.size, 3), True, record.image)

    def crop(self, source: Any, record: Record) -> np.ndarray:
        """[s, s, 3] uint8: the square around the face; the whole image without a box, or if so set;
        ImageError if it does not decode."""
        box = self._box(source, record)

        def make():
            image = self.picture(source, record)
            if box is not None:
                image = square_face_crop(image, box)
            return np.ascontiguousarray(clip_crop(image, self.size))

        return source.pictures.kept(("reference", record.image, box, self.size), make)

    def picture(self, source: Any, record: Record) -> np.ndarray:
        """A record's whole image as a reference, uint8 [h, w, 3]."""
        return source.pictures.image(record.image)

    def _box(self, source, record):
        return None if self.whole else record.face_box

    def from_records(self, records: Sequence[Record], read: Callable, size: tuple) -> list:
        return [read(record.image) for record in records[:MAX_REFERENCES]]

    def inputs(self, example: Example) -> list[Input] | None:
        return [self.of(example.source, record) for record in example.references] or None

    def make(self, example: Example) -> dict[str, np.ndarray] | None:
        # Like ``join``, without a float array for every crop.
        drawn = example.drawn[self.name]
        if not drawn:
            return None
        pixels = np.zeros((MAX_REFERENCES, *drawn[0].shape), np.float32)
        for crop, place in zip(drawn, pixels, strict=False):
            clip_normalise(crop, out=place)
        return {self.pixels: pixels, **self._mask(len(drawn))}

    def make_cached(self, example: Example) -> dict[str, np.ndarray] | None:
        drawn = example.drawn[self.name]
        return self.join_rows(example, drawn) if drawn else None

    def draw_one(self, source: Any, record: Record) -> Any:
        """What an example keeps of a reference: the crop, or with a cache the encoder's row."""
        if source.caches(self):
            return source.features.row(self.encoding, self.of(source, record))
        return self.crop(source, record)

    def join(self, example: Example, values: list) -> dict[str, np.ndarray]:
        return {self.pixels: self._stack(values), **self._mask(len(values))}

    def join_rows(self, example: Example, rows: list[dict]) -> dict[str, np.ndarray]:
        features = self._stack([row["features"] for row in rows])
        return {self.features: features} | self._mask(len(rows))

    @staticmethod
    def _stack(values):
        out = np.zeros((MAX_REFERENCES, *values[0].shape), values[0].dtype)
        out[: len(values)] = values
        return out

    def all_inputs(self, source: Any, record: Record) -> list[Input]:
        return [self.of(source, record)]

    def _mask(self, count):
        return {self.mask: np.arange(MAX_REFERENCES) < count}

    # ---- from a call ----

    def people_of(self, call: Call) -> list[list[list]]:
        """The images of a call by prompt and person: what it passes by name, or its references."""
        people = call.people or []
        given = [self._photographs(own) for own in call.inputs.get(self.name, ())]
        for prompt, (own, persons) in enumerate(zip(given, people, strict=False), 1):
            if len(own) != len(persons):
                counts = f"of {len(own)} people, references of {len(persons)}"
                raise ValueError(f"{self.name} of prompt {prompt}: {counts}; a list for each")
            if self.paired and [*map(len, own)] != [*map(len, persons)]:
                counts = f"{sum(map(len, own))} for {sum(map(len, persons))} references"
                raise ValueError(f"{self.name} of prompt {prompt}: {counts}; give one for each")
        return given or people

    def given(self, call: Call) -> dict[str, np.ndarray]:
        people = self.people_of(call)
        shape = (len(people), max(map(len, people)), MAX_REFERENCES)
        pixels, mask = (
            np.zeros((*shape, self.size, self.size, 3), np.float32),
            np.zeros(shape, bool),
        )
        for row, persons in enumerate(people):
            for person, images in enumerate(persons):
                for column, image in enumerate(images):
                    if isinstance(image, Face):
                        image = image.picture(self.name, self.whole)
                    pixels[row, person, column] = clip_preprocess(load_image(image), self.size)
                    mask[row, person, column] = True
        pixels = pixels.reshape(shape[0], -1, self.size, self.size, 3)
        return {self.pixels: pixels, self.mask: mask.reshape(shape[0], -1)}

    def _photographs(self, given: Any) -> list[list]:
        """A prompt's photographs by person, from one, a list, or a list of lists."""
        listed = list(given) if isinstance(given, (list, tuple)) else [given]
        nested = bool(listed) and all(isinstance(each, (list, tuple)) for each in listed)
        people = [list(own) for own in listed] if nested else [listed]
        for own in people:
            if not 1 <= len(own) <= MAX_REFERENCES:
                raise ValueError(f"{self.name}: {len(own)} of a person; give 1 to {MAX_REFERENCES}")
        return people

    def dropped(self, batch: Batch, xp: Any) -> dict:
        return {self.mask: xp.zeros_like(batch[self.mask])}
