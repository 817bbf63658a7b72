"""An IP-Adapter's file of each variant, and the model that it fills."""

import pytest
from diffusers import UNet2DConditionModel

from tests.helpers.ip_adapters import FACES, write_ip_adapter
from tests.weights.formats.ip_adapter.models import FEATURES, RANK, attach


@pytest.fixture(scope="session")
def unet(tiny_base):
    return UNet2DConditionModel.from_pretrained(tiny_base / "unet")


@pytest.fixture(scope="session")
def files(unet, tmp_path_factory):
    """kind -> (path, its tensors)."""
    folder = tmp_path_factory.mktemp("ip-adapters")
    endings = {"base": "bin", "plus": "safetensors", "faceid": "bin", "faceid-plus": "safetensors"}
    found = {}
    for kind, ending in endings.items():
        path = folder / f"ip-adapter-{kind}.{ending}"
        rank = RANK if kind in FACES else 0
        found[kind] = path, write_ip_adapter(path, unet, kind, FEATURES[kind], rank=rank)
    return found


@pytest.fixture(scope="session")
def loaded(tiny_base, files):
    """kind -> the model with the file's weights."""
    return {kind: attach(tiny_base, start_from=str(path))[0] for kind, (path, _) in files.items()}
