"""The config of a study that has not begun."""

import pytest

from tests.study.studies import make_study, write_trainings


@pytest.fixture
def study(tmp_path):
    write_trainings(tmp_path)
    return make_study(tmp_path)
