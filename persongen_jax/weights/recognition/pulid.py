"""PuLID's files by their names: which version, and which family's."""

import re
from collections.abc import Iterable

ENCODER, LAYERS = "id_adapter.", "id_adapter_attn_layers."
FLUX = re.compile(r"pulid_(encoder|ca)\.")
# A name that only this version's encoder has, as published or as converted for ComfyUI.
_MARKS = {
    "v1": re.compile(r"(id_adapter|image_proj)\.body\.0\.weight"),
    "v1.1": re.compile(r"(id_adapter|image_proj)\.id_embedding_mapping\.0\.weight"),
}


def pulid_version(keys: Iterable[str]) -> str:
    """ "v1" or "v1.1" for the names of a PuLID file for SDXL; "" for others."""
    keys = list(keys)
    found = [name for name, mark in _MARKS.items() if any(mark.fullmatch(key) for key in keys)]
    return found[0] if len(found) == 1 else ""


__all__ = ["ENCODER", "FLUX", "LAYERS", "pulid_version"]
