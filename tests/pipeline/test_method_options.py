"""Options of load_method: read by the kind of what the config has."""

import pytest
from ml_collections import ConfigDict

from persongen_jax.methods.published.ip_adapter import IPAdapter
from persongen_jax.methods.published.pulid import PuLID
from persongen_jax.pipeline.method_options import with_options

FACEID_PLUS = {"method": "ip_adapter", "shortcut": True, "s_scale": 1.0}
PLUS = {"method": "ip_adapter", "references": "face"}
OF_PULID = {"method": "pulid", "pulid_mode": "", "pulid_zeros": -1, "pulid_id_mix": False}


@pytest.mark.parametrize(
    ("method", "config", "given", "read"),
    [
        (IPAdapter, FACEID_PLUS, {"shortcut": "false", "s_scale": "2"}, (False, 2.0)),
        (IPAdapter, PLUS, {"references": "aligned"}, ("aligned",)),
        (PuLID, OF_PULID, {"pulid_zeros": 3, "pulid_id_mix": "True"}, (3, True)),
    ],
    ids=["FaceID Plus", "plus", "PuLID"],
)
def test_options_replace_what_the_file_has(method, config, given, read):
    found = with_options(ConfigDict(config), method(), given)
    assert tuple(found[key] for key in given) == read
    assert {k: v for k, v in found.items() if k not in given} == {
        k: v for k, v in config.items() if k not in given
    }


@pytest.mark.parametrize(
    ("method", "config", "given", "said"),
    [
        (IPAdapter, FACEID_PLUS, {"shortcut": 2}, "shortcut=2: give True or False"),
        (IPAdapter, FACEID_PLUS, {"s_scale": "much"}, "s_scale='much': give a finite number"),
        (IPAdapter, FACEID_PLUS, {"s_scale": float("nan")}, "s_scale=nan: give a finite number"),
        (IPAdapter, FACEID_PLUS, {"references": "face"}, "it has shortcut, s_scale"),
        (IPAdapter, PLUS, {"references": "half"}, "references='half': give face, whole or aligned"),
        (PuLID, OF_PULID, {"pulid_zeros": 1.5}, "pulid_zeros=1.5: give a whole number"),
        (PuLID, OF_PULID, {"pulid_mode": 5}, "pulid_mode=5: give a text"),
        (PuLID, OF_PULID, {"pulid_id_mix": "all"}, "pulid_id_mix='all': give True or False"),
    ],
)
def test_what_cannot_be_read_is_named(method, config, given, said):
    with pytest.raises(ValueError, match=said):
        with_options(ConfigDict(config), method(), given)
