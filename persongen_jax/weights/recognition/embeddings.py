"""Files of words' embeddings (Textual Inversion): which tensor is whose, by keys and shapes alone.

Tools write the same rows in four layouts, of which only one names the word:

    diffusers   {WORD: [n, d] or [d]}, a file for each text tower; also {WORD: [d], WORD_1: [d], …}
    kohya       {clip_l: [n, 768], clip_g: [n, 1280]}; AUTOMATIC1111's and pivotal tuning's for SDXL
    cog-sdxl    {text_encoders_0: [n, 768], text_encoders_1: [n, 1280]}
    a1111       {string_to_param: {"*": [n, 768]}, name, …}, or {emb_params: [n, 768]}: one tower
"""

from dataclasses import dataclass

import numpy as np

from persongen_jax.weights.files.source import TensorSource

# The towers by their short names, which most files use -> SDXL's component.
TOWERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
MAX_ROWS = 75  # CLIP's prompts have room for no more

FORMS = {
    "diffusers": "diffusers' form, a file for each tower",
    "kohya": "the form of kohya and AUTOMATIC1111 for SDXL, and of pivotal tuning",
    "cog-sdxl": "cog-sdxl's form",
    "a1111": "AUTOMATIC1111's form for models with one tower",
}
_COG = {"text_encoders_0": "clip_l", "text_encoders_1": "clip_g"}
_FOR_WIDTH = {
    768: "SDXL's text_encoder, or SD 1.x",
    1024: "SD 2.x",
    1280: "SDXL's text_encoder_2",
}


Words = dict[str, dict[str, tuple[str, ...]]]


@dataclass(frozen=True)
class EmbeddingLayout:
    """What :func:`read_embedding_layout` finds.

    Attributes:
        form: one of ``FORMS``.
        words: word ("" if the file does not name it) -> tower of ``TOWERS`` ("" if only the width
            tells it) -> the keys whose rows follow each other.
        others: keys that have no place in this form.
    """

    form: str
    words: Words
    others: tuple[str, ...] = ()


def read_embedding_layout(source: TensorSource) -> EmbeddingLayout | None:
    """The layout; None if no embedding has such keys or shapes."""
    keys = source.keys()
    words: Words
    for form, towers in (("kohya", {key: key for key in TOWERS}), ("cog-sdxl", _COG)):
        if own := [key for key in keys if key in towers]:
            words = {"": {towers[key]: (key,) for key in own}}
            return EmbeddingLayout(form, words, tuple(k for k in keys if k not in own))
    params = [key for key in keys if key == "emb_params" or key.startswith("string_to_param.")]
    if params:
        # The dictionary maps one placeholder, "*", whatever the word is.
        others = [k for k in keys if k != params[0] and not k.startswith("string_to_token.")]
        words = {_name(source): {"clip_l": (params[0],)}}
        return EmbeddingLayout("a1111", words, tuple(others))
    if keys and all(0 < _rows(source, key) <= MAX_ROWS for key in keys):
        words = {("" if word == "*" else word): {"": own} for word, own in _joined(source).items()}
        return EmbeddingLayout("diffusers", words)
    return None


def looks_like_words(source: TensorSource) -> bool:
    """Whether keys that may be anything are words: few rows of a known tower's width each."""
    layout = read_embedding_layout(source)
    return layout is not None and all(
        source.info(key)[1][-1] in _FOR_WIDTH and not key.endswith((".weight", ".bias", ".alpha"))
        for key in source.keys()
    )


def embedding_facts(source: TensorSource) -> dict:
    """What tells embeddings apart, for ``convert inspect``."""
    layout = read_embedding_layout(source)
    if layout is None:
        return {}
    keys = [own for towers in layout.words.values() for own in towers.values()]
    widths = dict.fromkeys(source.info(own[0])[1][-1] for own in keys if source.info(own[0])[1])
    named = [word for word in layout.words if word] or [source.metadata.get("word", "")]
    rows = dict.fromkeys(sum(_rows(source, key) for key in own) for own in keys)
    facts = {"form": FORMS[layout.form], "words": ", ".join(filter(None, named)) or "not named"}
    facts["vectors of a word"] = " or ".join(map(str, rows))
    facts["for"] = " and ".join(_FOR_WIDTH.get(w, f"a tower {w} wide") for w in widths)
    return facts


def _rows(source, key) -> int:
    """The number of rows of [n, d] or [d]; 0 for other shapes and for what are no real numbers."""
    dtype, shape = source.info(key)
    real = np.dtype(dtype).name.startswith(("float", "bfloat"))  # numpy has no class for both
    return {1: 1, 2: shape[0]}.get(len(shape), 0) if real and all(shape) else 0


def _name(source) -> str:
    name = getattr(source, "others", {}).get("name")
    return name if isinstance(name, str) else ""


def _joined(source) -> dict[str, tuple[str, ...]]:
    """Word -> its keys: diffusers calls the further vectors of WORD, WORD_1, WORD_2, …"""
    keys, words, taken = source.keys(), {}, set()
    for key in sorted(keys, key=len):
        if key in taken:
            continue
        own = [key]
        while _rows(source, key) == 1 and (more := f"{key}_{len(own)}") in keys:
            if _rows(source, more) != 1:
                break
            own.append(more)
        taken.update(own)
        words[key] = tuple(own)
    return words


__all__ = [
    "FORMS",
    "TOWERS",
    "EmbeddingLayout",
    "embedding_facts",
    "looks_like_words",
    "read_embedding_layout",
]
