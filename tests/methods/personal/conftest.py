"""Pictures of one drawn person, and a config that trains on them in a few seconds."""

import pytest

from tests.helpers.training_runs import changed, small_config

DATA = "people:in_train?identities=1&pictures=4&size=32"


@pytest.fixture(scope="session")
def personal_config(small_base):
    config = small_config(small_base, DATA)
    own = {"token": "ohwx", "size": 32, "batch_size": 4, "face_loss_prob": 0.0}
    own |= {"drop_prob": 0.0, "ema_decay": 0.0}
    return changed(config, **own)
