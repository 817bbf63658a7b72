"""Fixtures that several modules here share."""

import pytest

from tests.evaluation.test_validation import encoders  # noqa: F401
from tests.study.studies import make_study, write_trainings


@pytest.fixture
def study(tmp_path):
    write_trainings(tmp_path)
    return make_study(tmp_path)
