"""IP-Adapter's variants: the key that tells each, its projection's class, and that one's sizes."""

import re

from persongen_jax.models.encoders.resampler import (
    FaceIDPlusProjection,
    FaceIDProjection,
    ImageProjection,
    Resampler,
)
from persongen_jax.weights.files.source import TensorSource

IMAGE_PROJ = "image_proj."
HEAD_DIM = 64  # of the resamplers; not in the file; every reader assumes it

PROJECTIONS = {
    "base": ImageProjection,
    "plus": Resampler,
    "faceid": FaceIDProjection,
    "faceid-plus": FaceIDPlusProjection,
}
FACES = ("faceid", "faceid-plus")  # read a face recogniser's embeddings

# A key that only this variant has; FaceID Plus has FaceID's too.
MARKS = {
    "base": f"{IMAGE_PROJ}proj.weight",
    "plus": f"{IMAGE_PROJ}latents",
    "faceid": f"{IMAGE_PROJ}proj.2.weight",
    "faceid-plus": f"{IMAGE_PROJ}perceiver_resampler.proj_in.weight",
}


def variants_of(keys: list[str]) -> list[str]:
    """The variants whose mark is among a file's keys; one, unless something is wrong with it."""
    kinds = [kind for kind, mark in MARKS.items() if mark in keys]
    return ["faceid-plus"] if kinds == ["faceid", "faceid-plus"] else kinds


def projection_sizes(kind: str, source: TensorSource) -> dict:
    """The arguments of the kind's class that the projection's tensors show."""
    return _SIZES[kind](source)


def _base_sizes(source) -> dict:
    rows, in_features = source.info("proj.weight")[1]
    return {"in_features": in_features, **_token_sizes(source, rows)}


def _faceid_sizes(source) -> dict:
    hidden, in_features = source.info("proj.0.weight")[1]
    rows, _ = source.info("proj.2.weight")[1]
    sizes = {"in_features": in_features, "hidden_features": hidden}
    return {**sizes, **_token_sizes(source, rows)}


def _faceid_plus_sizes(source) -> dict:
    part = "perceiver_resampler."
    return {
        **_faceid_sizes(source),
        "image_features": source.info(f"{part}proj_in.weight")[1][1],
        **_resampler_sizes(source, part),
    }


def _token_sizes(source, rows) -> dict:
    (features,) = source.info("norm.weight")[1]
    return {"features": features, "num_tokens": rows // features}


def _plus_sizes(source) -> dict:
    _, num_tokens, features = source.info("latents")[1]
    return {
        "in_features": source.info("proj_in.weight")[1][1],
        "features": features,
        "out_features": source.info("proj_out.weight")[1][0],
        **_resampler_sizes(source, ""),
        "hidden_features": source.info("layers.0.1.1.weight")[1][0],
        "num_tokens": num_tokens,
    }


def _resampler_sizes(source, part: str) -> dict:
    layer = rf"{re.escape(part)}layers\.(\d+)\."
    return {
        "heads": source.info(f"{part}layers.0.0.to_q.weight")[1][0] // HEAD_DIM,
        "head_dim": HEAD_DIM,
        "num_layers": len({match[1] for key in source.keys() if (match := re.match(layer, key))}),
    }


_SIZES = {
    "base": _base_sizes,
    "plus": _plus_sizes,
    "faceid": _faceid_sizes,
    "faceid-plus": _faceid_plus_sizes,
}

__all__ = [
    "FACES",
    "HEAD_DIM",
    "IMAGE_PROJ",
    "MARKS",
    "PROJECTIONS",
    "projection_sizes",
    "variants_of",
]
