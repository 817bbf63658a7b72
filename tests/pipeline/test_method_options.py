"""What a call says of a method: every setting has the kind of the config's own."""

from pathlib import Path

import pytest

from persongen_jax.methods.published.instantid import InstantID
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
        ({"shortcut": True}, "shortcut=True is none of photomaker; it has pulid_release"),
    ],
)
def test_other_values_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        chosen(PuLID(), **options)
