"""Turns a call into what the UNet reads: prompts, references and other inputs into Guidance.

What a call may give, scale and restrict to regions is derived from the loaded method's fields and
conditioning, so a stream or map of any name supports all of it.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from data_pipeline.examples.conditions import Text
from data_pipeline.examples.fields import Call, Field, TimeIds, unflatten
from data_pipeline.faces.face import Face
from data_pipeline.pictures.reading import load_image
from data_pipeline.records.schema import MAX_REFERENCES
from persongen_jax.diffusion.conditioning import (
    Conditioning,
    Guidance,
    TokenStream,
    region_arrays,
)
from persongen_jax.diffusion.strengths import schedule
from persongen_jax.methods.base import Method
from persongen_jax.parallel.sharding import batch_sharding, put, put_array
from persongen_jax.pipeline.checks import broadcast_texts
from persongen_jax.pipeline.images import default_size
from persongen_jax.weights.formats.sdxl.loading import SDXLBase


class Conditioner:
    """Conditions on prompts alone, or with the method attached to the base's model.

    Args:
        base: SDXLBase.
        mesh: the images are split over its devices.
        method: what is attached; None: the base alone.
        fields: the inputs that the method reads.
        released: whether it is a published file's, so that no negative prompt is the base's zeros.

    Attributes:
        text: the field that reads prompts.
        identity: the fields that say who the person is: "references", possibly others.
        inputs: names of other inputs of a call: additional prompts, control images, points.
    """

    def __init__(
        self,
        base: SDXLBase,
        mesh: Mesh,
        method: Method | None = None,
        fields: Iterable[Field] = (),
        released: bool = False,
    ):
        self.base, self.mesh, self.method, self.released = base, mesh, method, released
        self.fields = tuple(fields) or (Text(base.tokenizers, at_trigger=False), TimeIds())
        self.text = cast(Text, next(each for each in self.fields if each.name == "text"))
        self.identity = tuple(each for each in self.fields if each.identity)
        own = (self.text, *(each for each in self.identity if not each.by_name))
        others = (each.name for each in self.fields if each not in own and _is_call_input(each))
        self.inputs = (*self.text.further, *others)

    def is_active(self, references: Sequence | None) -> bool:
        """Whether the method conditions these images; one without references always does."""
        return self.method is not None and (references is not None or not self.identity)

    # ---- what a call may request ----

    @functools.cached_property
    def scalable_names(self) -> tuple[str, ...]:
        """The streams and maps of the method's conditioning, and "identity" in the prompt."""
        if self.method is None:
            return ()
        names = self._shapes(people=1).scalable_names
        in_prompt = self.identity and self.text.at_trigger
        return tuple(sorted({*names, *(("identity",) if in_prompt else ())}))

    @functools.cached_property
    def of_people(self) -> tuple[str, ...]:
        """The streams whose number of tokens grows with the number of people."""
        one, two = (self._shapes(people).streams for people in (1, 2))
        return tuple(n for n, s in one.items() if two[n].tokens.shape[1] > s.tokens.shape[1])

    def _shapes(self, people: int) -> Conditioning:
        """The method's conditioning of one image, as shapes; computes nothing."""
        spec = {}
        for each in self.fields:
            for name, (shape, dtype) in each.spec(default_size(self.base)).items():
                if each.identity:  # each person's places are adjacent
                    shape = (shape[0] * people, *shape[1:])
                spec[name] = jax.ShapeDtypeStruct((1, *shape), dtype)
        graphdef, state = nnx.split(self.base.model.conditioner())
        condition = functools.partial(_condition, self.method, graphdef)
        return jax.eval_shape(condition, state, unflatten(spec))

    def check_people(
        self,
        references: Sequence | None,
        regions: Sequence | None,
        prompts: Sequence[str],
        shape: Sequence[int],
    ) -> tuple[list | None, np.ndarray | None]:
        """(people, regions): the references of each prompt and person; [n, p, *shape].

        Raises before anything is computed, including PromptError for the first prompt that cannot
        be read.
        """
        if references is None:
            if regions is not None:
                raise ValueError("regions go with references; give them too")
            return None, None
        if self.method is None:
            raise ValueError(
                "references need an identity method: call load_method(name, weights) first"
            )
        if not self.identity:
            raise ValueError("references: the loaded method does not read any; leave them out")
        people = check_people(references, regions, len(prompts))
        several = max(map(len, people)) > 1
        if (several or regions is not None) and not self.of_people:
            raise ValueError(
                f"{'several people' if several else 'regions'}: no stream of the loaded method "
                "has tokens for each person; where it writes the identity into the prompt, that "
                "acts everywhere. Take one that reads it by an attention branch (id_branch, "
                "ip_lora, dual, cascade)"
            )
        for prompt, persons in zip(prompts, people, strict=True):
            self.text.read(prompt, len(persons[0]))
        people = read_people(people)
        return people, None if regions is None else region_arrays(regions, people, *shape)

    def check_inputs(self, inputs: dict, acts: bool, count: int) -> tuple[dict, dict]:
        """(parts, others): a text (or None) per prompt by stream; inputs of other fields."""
        inputs = {name: given for name, given in inputs.items() if given is not None}
        for name, given in inputs.items():
            if name not in self.inputs:
                raise ValueError(
                    f"{name}={_short_repr(given)}: no loaded method reads {name!r} (available: "
                    f"{', '.join(('text', *self.inputs))}); say it in the prompt"
                )
            if not acts:
                raise ValueError(
                    f"{name}={_short_repr(given)}: it goes with references; give them too"
                )
        further = self.text.further
        parts = {
            name: broadcast_texts(inputs.get(name), count, f"{name} prompts") for name in further
        }
        others = {name: given for name, given in inputs.items() if name not in further}
        for name, given in others.items():
            if not isinstance(given, (list, tuple, np.ndarray)):
                raise ValueError(f"{name}: {type(given).__name__}; give a list, one each")
            if len(given) != count:
                raise ValueError(f"{len(given)} of {name} for {count} prompts: give one each")
        return parts, others

    def schedules(self, scales: dict, lora: bool, acts: bool, num_steps: int) -> dict:
        """[num_steps] by name, for all of the method, so that no strength needs a new program.

        Args:
            scales: what the call requests; missing ones are the method's own, mostly 1.
            lora: whether the method has a LoRA of its own on the model.
            acts: whether the method conditions these images.
        """
        if scales and not acts:
            needed = "a method's references" if self.method is None else "references"
            raise ValueError(f"scales={scales}: they need {needed}; give them too")
        if not acts:
            return {}
        names = sorted({*self.scalable_names, *(("lora",) if lora else ())})
        unknown = sorted(set(scales) - set(names))
        if unknown:
            raise ValueError(
                f"scales: nothing is called {', '.join(map(repr, unknown))}; this method has "
                f"{', '.join(names) or 'none'} (lora unless it is fused)"
            )
        usual = {name: 1.0 for name in names} | dict(self.method.scales if self.method else ())
        own = {name: np.full(num_steps, usual[name], np.float32) for name in names}
        return own | {n: schedule(n, given, num_steps, usual[n]) for n, given in scales.items()}

    # ---- conditioning ----

    def encode_prompt(self, prompts: Sequence[str]) -> tuple[jax.Array, jax.Array]:
        """prompt_embeds [b, 77, d] and pooled_prompt_embeds [b, p] of b prompts."""
        ids = np.stack([self.base.tokenizers.encode(prompt) for prompt in prompts])
        view = nnx.split(self.base.model.conditioner())
        return _encode_prompt(*view, put_array(ids, batch_sharding(self.mesh)))

    def guidance(
        self,
        call: Call,
        negatives: Sequence[str | None] | None,
        regions: np.ndarray | None,
        which: np.ndarray,
    ) -> Guidance:
        """For one batch, whose rows belong to the prompts with these indices.

        Args:
            call: of all prompts. negatives: a text (or None) per prompt; None: no such side.
            regions: [prompts, people, h, w] or None.
            which: [b] int.
        """
        call = _rows(call, which)
        against = None if negatives is None else [negatives[i] for i in which]
        if not self.is_active(call.people):
            return self._text_guidance(call, against)
        if self.method is not None and self.method.text_only:
            named = [self.text.without_trigger(prompt) for prompt in call.prompts]
            return self._text_guidance(replace(call, prompts=named), against)
        return self._method_guidance(call, against, None if regions is None else regions[which])

    def _text_guidance(self, call: Call, negatives) -> Guidance:
        """The base's own conditioning: the prompts alone."""
        ids = put_array(call.time_ids, batch_sharding(self.mesh))
        embeds, pooled = self.encode_prompt(call.prompts)
        late = Conditioning({"text": TokenStream(embeds)}, pooled, ids)
        if negatives is None:
            return Guidance(late)
        negative_embeds, negative_pooled = self.encode_prompt([text or "" for text in negatives])
        unconditional = Conditioning({"text": TokenStream(negative_embeds)}, negative_pooled, ids)
        return Guidance(late, self._zeroed(unconditional, negatives))

    def _zeroed(self, side: Conditioning, negatives) -> Conditioning:
        """With the zero embedding where there is no negative prompt, if the base says so."""
        named = np.array([text is not None for text in negatives])
        if named.all() or not self.base.model_index.get("force_zeros_for_empty_prompt", True):
            return side
        tokens = jnp.where(named[:, None, None], side.streams["text"].tokens, 0)
        pooled = jnp.where(named[:, None], cast(jax.Array, side.pooled_prompt_embeds), 0)
        return replace(side.with_stream("text", tokens), pooled_prompt_embeds=pooled)

    def _method_guidance(self, call: Call, negatives, regions) -> Guidance:
        """Late: everything. Early: without the identity. Unconditional: without any condition.

        All are the method's own conditioning of batches with less and less in them, every input as
        its field drops it; streams other than "text" read the empty prompt, not zeros.
        """
        text, batch, nobody, nothing = self.text, {}, {}, {}
        for each in self.fields:
            given = each.given(call)
            batch |= given
            if given and each is not text:
                dropped = each.dropped(given, np)
                # What is dropped on its own, such as a control image, acts on both sides.
                nothing |= dropped if each.drop_prob is None else {}
                nobody |= each.absent(given, np) if each.identity else {}

        def with_prompts(prompts, parts):
            return batch | text.given(replace(call, prompts=prompts, parts=parts, people=None))

        late, early, plain, unconditional = self._condition(batch, regions), None, None, None
        if negatives is not None:
            against = with_prompts([negative or "" for negative in negatives], {})
            unconditional = self._condition(against | nothing, regions)
            if self.released:
                unconditional = self._zeroed(unconditional, negatives)
        if nobody:
            texts = [text.without_trigger(prompt) for prompt in call.prompts]
            early = self._condition(with_prompts(texts, call.parts) | nobody, regions)
            if text.at_trigger:
                plain = self._condition(batch | nobody).streams["text"].tokens
        return Guidance(late, unconditional, early, plain)

    def _condition(self, batch: dict, regions=None) -> Conditioning:
        """The method's conditioning of flat host arrays; ``regions`` on the streams of people."""
        batch = put(unflatten(batch), batch_sharding(self.mesh))
        conditioning = _condition(self.method, *nnx.split(self.base.model.conditioner()), batch)
        if regions is None:
            return conditioning
        streams, where = dict(conditioning.streams), put_array(regions, batch_sharding(self.mesh))
        for name in self.of_people:
            streams[name] = replace(streams[name], region=where)
        return replace(conditioning, streams=streams)


def check_people(references: Sequence, regions: Sequence | None, count: int) -> list[list[list]]:
    """A list of one to four references for each prompt and person.

    Args:
        references: per prompt a list of images (one person), or a list of such lists.
        regions: per prompt a list of masks, one per person; or None.
        count: of prompts.

    Raises:
        ValueError: an image instead of a list; counts that do not match; several people without
            regions.
    """
    _check_list("references", references)
    if regions is not None:
        _check_list("regions", regions)
    for name, given in (("references", references), ("regions", regions)):
        if given is not None and len(given) != count:
            raise ValueError(f"{len(given)} lists of {name} for {count} prompts: give one each")
    people = [_per_person(own) for own in references]
    for persons in people:
        for images in persons:
            if not 1 <= len(images) <= MAX_REFERENCES:
                raise ValueError(f"{len(images)} references: give one to {MAX_REFERENCES}")
    if regions is None:
        most = max(map(len, people))
        if most > 1:
            raise ValueError(
                f"references of {most} people: give regions too, a mask each, or everyone "
                "would be mixed everywhere"
            )
        return people
    for persons, masks in zip(people, regions, strict=True):
        _check_list("regions", masks)
        if len(masks) != len(persons):
            raise ValueError(f"{len(masks)} regions for {len(persons)} people: give one each")
    return people


def read_people(people: list[list[list]]) -> list[list[list]]:
    """Load each reference once, although several prompts may share the object."""
    read = {}

    def once(image, name):
        if id(image) not in read:
            if not isinstance(image, Face):
                read[id(image)] = load_image(image, name)
            elif image.image is None:
                read[id(image)] = image
            else:
                read[id(image)] = replace(image, image=load_image(image.image, name))
        return read[id(image)]

    out = []
    for row, persons in enumerate(people, 1):
        out.append([])
        for person, images in enumerate(persons, 1):
            whose = f"person {person} of prompt {row}" if len(persons) > 1 else f"prompt {row}"
            names = (f"reference {n} of {whose}" for n in range(1, len(images) + 1))
            out[-1].append(list(map(once, images, names)))
    return out


LIST_HINTS = {
    "references": "face crops, references=[[face]] for one face",
    "regions": "masks, regions=[[mask]] for one person",
}


def _check_list(name: str, given):
    # An array has a length like a list, and its rows would be mistaken for images.
    if not isinstance(given, (list, tuple)):
        raise ValueError(
            f"{name}: {type(given).__name__} where a list belongs; give for each prompt a list "
            f"of {LIST_HINTS[name]}"
        )


def _per_person(own) -> list[list]:
    _check_list("references", own)
    nested = [isinstance(entry, (list, tuple)) for entry in own]
    if not any(nested):
        return [list(own)]
    if not all(nested):
        raise ValueError(
            "references of one prompt: give images of one person, or a list of images for each "
            "person, not a mix of both"
        )
    return [list(images) for images in own]


def _rows(call: Call, which) -> Call:
    def rows(values):
        return None if values is None else [values[i] for i in which]

    parts, inputs = ({n: rows(v) for n, v in some.items()} for some in (call.parts, call.inputs))
    prompts, people = rows(call.prompts), rows(call.people)
    return Call(prompts, parts, people, call.time_ids[which], call.size, inputs)


def _is_call_input(field: Field) -> bool:  # passed by its name
    return type(field).given is not Field.given and not isinstance(field, TimeIds)


def _short_repr(given) -> str:
    """Texts as they are; images and numbers would fill the screen."""
    values = given if isinstance(given, (list, tuple)) else [given]
    return repr(given) if all(isinstance(v, (str, type(None))) for v in values) else "..."


@functools.partial(jax.jit, static_argnums=0)
def _encode_prompt(graphdef, state, input_ids):
    return nnx.merge(graphdef, state).encode_prompt(input_ids)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _condition(method, graphdef, state, batch):
    return method.condition(nnx.merge(graphdef, state), batch)
