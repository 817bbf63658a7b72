"""Which runs may stand in one table."""

import json

import pytest

from persongen_jax.comparison import ENCODERS, PAINTED_WITH, check_comparable, read_run

ROW = {
    **{"step": 10, "set": "in_train", "method": "photomaker", "seed": 1, "clip": "c"},
    **{"face_net": "f", "sampling_steps": 20, "guidance": 4.0, "merge_step": 2},
    **{"people": 10, "prompts": 4, "images_each": 1, "metrics": {}},
}


def test_runs_may_differ_by_method_seed_and_step():
    other = {**ROW, "step": 20, "method": "photomaker_bg", "seed": 2}
    check_comparable({"a": [[ROW], [other]], "b": [[other]]})


@pytest.mark.parametrize("key", [*ENCODERS, *PAINTED_WITH])
def test_figures_measured_otherwise_are_not_compared(key):
    assert key in ROW
    with pytest.raises(ValueError, match=f"different {key}.*7.*; evaluate the runs"):
        check_comparable({"a": [[ROW]], "b": [[{**ROW, key: 7}]]})
    # Nor within one name.
    with pytest.raises(ValueError, match=f"different {key}"):
        check_comparable({"a": [[ROW], [{**ROW, key: 7}]]})


@pytest.mark.parametrize("key", PAINTED_WITH)
def test_another_set_may_be_painted_otherwise(key):
    check_comparable({"a": [[ROW, {**ROW, "set": "out_of_train", key: 7}]]})


@pytest.mark.parametrize("folder", ["run", "lr=1e-4"])
def test_a_run_has_the_name_that_it_is_given(folder, tmp_path):
    path = tmp_path / folder / "validation" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(ROW) + "\n")
    assert read_run(str(tmp_path / folder)) == ("photomaker", [ROW])
    assert read_run(f"mine={tmp_path / folder}") == ("mine", [ROW])
