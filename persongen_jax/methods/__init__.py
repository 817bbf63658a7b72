"""Identity methods, by name. A new method is a file here, a line in ``METHODS`` and a config.

A config names a method from elsewhere as "package.module:Class". docs/methods.md says what each
method computes and trains, and adds one as an example.
"""

from persongen_jax.config import import_object
from persongen_jax.methods.base import Method
from persongen_jax.methods.personal.dreambooth import DreamBooth
from persongen_jax.methods.personal.lora import Lora
from persongen_jax.methods.personal.textual_inversion import PivotalTuning, TextualInversion
from persongen_jax.methods.published.bolid import BoLID
from persongen_jax.methods.published.controlnet import ControlNet
from persongen_jax.methods.published.facecdm import FaceCDM
from persongen_jax.methods.published.instantid import InstantID
from persongen_jax.methods.published.ip_adapter import IPAdapter
from persongen_jax.methods.published.photomaker import PhotoMaker
from persongen_jax.methods.published.photomaker_v2 import PhotoMakerV2
from persongen_jax.methods.published.pulid import PuLID
from persongen_jax.methods.thesis.cascade import Cascade
from persongen_jax.methods.thesis.dual import Dual
from persongen_jax.methods.thesis.id_branch import IDBranch
from persongen_jax.methods.thesis.ip_lora import IPLora
from persongen_jax.methods.thesis.photomaker_bg import PhotoMakerBackground
from persongen_jax.methods.thesis.photomaker_bg_body import PhotoMakerBackgroundBody

METHODS: dict[str, type[Method]] = {
    "photomaker": PhotoMaker,
    "photomaker_v2": PhotoMakerV2,
    "id_branch": IDBranch,
    "dual": Dual,
    "ip_lora": IPLora,
    "photomaker_bg": PhotoMakerBackground,
    "photomaker_bg_body": PhotoMakerBackgroundBody,
    "cascade": Cascade,
    "ip_adapter": IPAdapter,
    "controlnet": ControlNet,
    "facecdm": FaceCDM,
    "bolid": BoLID,
    "instantid": InstantID,
    "pulid": PuLID,
    "lora": Lora,
    "dreambooth": DreamBooth,
    "textual_inversion": TextualInversion,
    "pivotal_tuning": PivotalTuning,
}


def get_method(name: str) -> Method:
    """The method called ``name``, or "package.module:Class"; ValueError listing the known names."""
    if ":" in name:
        return import_object(name, "config.method")()
    if name not in METHODS:
        raise ValueError(
            f"method {name!r} is unknown; known: {', '.join(METHODS)}, or package.module:Class"
        )
    return METHODS[name]()
