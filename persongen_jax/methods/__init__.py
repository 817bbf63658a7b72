"""Identity methods, by name. A new one is a file here, a line in ``METHODS`` and a config."""

from persongen_jax.methods.base import Method
from persongen_jax.methods.photomaker import PhotoMaker
from persongen_jax.methods.photomaker_bg import PhotoMakerBackground

METHODS: dict[str, type[Method]] = {
    "photomaker": PhotoMaker,
    "photomaker_bg": PhotoMakerBackground,
}


def get_method(name: str) -> Method:
    """The method called ``name``; ValueError naming those that exist."""
    if name not in METHODS:
        raise ValueError(f"method {name!r} is unknown; known: {', '.join(METHODS)}")
    return METHODS[name]()
