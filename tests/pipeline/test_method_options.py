"""What a call says of a method: every setting has the kind of the config's own."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from persongen_jax.methods.published.instantid import InstantID
from persongen_jax.methods.published.ip_adapter import IPAdapter
from persongen_jax.methods.published.pulid import PuLID
from persongen_jax.pipeline.method_options import with_options
from persongen_jax.systems.sdxl_config import sdxl_defaults


def chosen(method, **options):
    return with_options(sdxl_defaults(), method, options)


def test_values_are_read_as_the_configs_own_kind():
    found = chosen(PuLID(), pulid_id_mix="false", pulid_zeros="4", pulid_face_parser=Path("a.pth"))
    assert (found.pulid_id_mix, found.pulid_zeros) == (False, 4)
    assert found.pulid_face_parser == "a.pth" and found.pulid_mode == ""
    assert chosen(InstantID(), face_point_radius=4).face_point_radius == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pulid_zeros": "many"}, "pulid_zeros='many': give a finite number"),
        ({"pulid_zeros": 2.5}, "pulid_zeros=2.5: give a whole number"),
        ({"pulid_id_mix": "perhaps"}, "pulid_id_mix='perhaps': give True or False"),
        ({"pulid_release": 1.1}, "pulid_release=1.1: give a name or a path"),
        ({"pulid_crop": 0}, "pulid_crop=0: give 1 or more"),
        ({"pulid_release": "x", "shortcut": True}, "has no such option; it has pulid_release"),
    ],
)
def test_other_values_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        chosen(PuLID(), **options)


FACEID_PLUS = {"method": "ip_adapter", "shortcut": True, "s_scale": 1.0}
PLUS = {"method": "ip_adapter", "references": "face"}


@pytest.mark.parametrize(
    ("config", "given", "read"),
    [
        (FACEID_PLUS, {"shortcut": "false", "s_scale": "2"}, (False, 2.0)),
        (PLUS, {"references": "aligned"}, ("aligned",)),
    ],
    ids=["FaceID Plus", "plus"],
)
def test_options_replace_what_the_file_has(config, given, read):
    found = with_options(ConfigDict(config), IPAdapter(), given)
    assert tuple(found[key] for key in given) == read
    assert {k: v for k, v in found.items() if k not in given} == {
        k: v for k, v in config.items() if k not in given
    }


@pytest.mark.parametrize(
    ("config", "given", "said"),
    [
        (FACEID_PLUS, {"s_scale": float("nan")}, "s_scale=nan: give a finite number"),
        (FACEID_PLUS, {"references": "face"}, "it has shortcut, s_scale"),
        (PLUS, {"references": "half"}, "references='half': give face, whole or aligned"),
    ],
)
def test_what_a_file_does_not_have_is_named(config, given, said):
    with pytest.raises(ValueError, match=said):
        with_options(ConfigDict(config), IPAdapter(), given)
