"""Which network of a call is which key of a method's config, of a file and of a run."""

import pytest

from persongen_jax.pipeline.loading import networks_of

RUN = {"face_encoder": "", "controlnet": "", "id_encoder": ""}  # a run's config has every key


@pytest.mark.parametrize(
    ("config", "is_run", "given", "found"),
    [
        (RUN, True, {"encoder": "E"}, {"id_encoder": "E", "face_net": "E"}),
        (RUN | {"face_encoder": "f"}, True, {"encoder": "E", "clip": "C"},
         {"face_encoder": "E", "id_encoder": "C"}),
        (RUN | {"controlnet": "n"}, True, {"controlnet": "N"}, {"controlnet": "N"}),
        ({"face_encoder": "", "controlnet": ""}, False, {"encoder": "E", "controlnet": "N"},
         {"face_encoder": "E", "controlnet": "N"}),
        ({"id_encoder": ""}, False, {"encoder": "E"}, {"id_encoder": "E", "face_net": "E"}),
    ],
)  # fmt: skip
def test_each_network_has_its_key(config, is_run, given, found):
    assert networks_of(config, given, "weights", is_run=is_run) == found


@pytest.mark.parametrize("name", ["clip", "controlnet"])
def test_one_that_nothing_reads_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=N: weights has no part that reads it"):
        networks_of(RUN, {name: "N"}, "weights", is_run=True)
