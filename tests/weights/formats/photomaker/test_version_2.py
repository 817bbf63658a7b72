"""PhotoMaker's files of version 2, against ones that the public PyTorch classes write."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import CLIPVisionConfig

from persongen_jax.models.encoders.photomaker_v2 import PhotoMakerV2IDEncoder
from persongen_jax.training.partition import leaf_paths
from persongen_jax.weights.errors import (
    UnsupportedAdapter,
)
from persongen_jax.weights.formats.photomaker import (
    load_photomaker_into,
    read_photomaker,
    save_photomaker,
)
from tests.helpers.twins import nhwc, randomise, relative_error
from tests.models.encoders.test_photomaker_v2 import TorchV2IDEncoder
from tests.weights.formats.photomaker.models import TOLERANCE, attach, same

FACE = 12  # length of the recogniser's embedding; 512 in the published file


@pytest.fixture(scope="module")
def encoder_v2(small_base):
    config = CLIPVisionConfig.from_pretrained(small_base / "image_encoder")
    return randomise(TorchV2IDEncoder(config, (32, 64), id_dim=FACE, head_dim=32), seed=3)


@pytest.fixture(scope="module")
def file_v2(encoder_v2, tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("photomaker") / "photomaker-v2.bin"
    content = {"id_encoder": dict(encoder_v2.state_dict())}
    torch.save({**content, "lora_weights": tensors["lora_weights"]}, path)
    return path


@pytest.fixture(scope="module")
def model_v2(small_base, file_v2):
    """The small base with PhotoMaker's LoRA and version 2's ID encoder, filled from the file."""
    model = attach(small_base)
    model.id_encoder = PhotoMakerV2IDEncoder(
        model.id_encoder.vision_model,
        (32, 64),
        id_features=FACE,
        head_dim=32,
        dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    load_photomaker_into(model, file_v2)
    return model


def test_version_2_computes_what_the_published_class_does(model_v2, encoder_v2):
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    faces = torch.randn(1, 2, FACE, generator=generator)
    with torch.no_grad():
        wanted = encoder_v2.embed(pixels[None], faces).numpy()
    found = jax.jit(lambda x, y: model_v2.id_encoder(x, y))(nhwc(pixels)[None], faces.numpy())
    assert relative_error(found, wanted) < TOLERANCE


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_version_2_comes_back_bit_equal(model_v2, file_v2, encoder_v2, tmp_path, ending):
    path = tmp_path / f"mine.{ending}"
    save_photomaker(model_v2, path)
    with read_photomaker(file_v2) as first, read_photomaker(path) as second:
        assert first.version == second.version == 2
        assert set(first.tensors.keys()) == set(second.tensors.keys())
        for key in first.tensors.keys():
            assert same(second.tensors.read(key), first.tensors.read(key)), key
        parts = dict.fromkeys(key.split(".")[0] for key in second.id_encoder.keys())
    if ending == "bin":
        assert list(parts) == list(dict.fromkeys(k.split(".")[0] for k in encoder_v2.state_dict()))
    before = {name: leaf.get_value() for name, leaf in leaf_paths(model_v2).items()}
    load_photomaker_into(model_v2, path)
    after = leaf_paths(model_v2)
    assert all(np.array_equal(after[name].get_value(), value) for name, value in before.items())


def test_the_other_version_is_named(model, model_v2, file, file_v2):
    with pytest.raises(UnsupportedAdapter, match=r"v2\.bin: is PhotoMaker v2.*photomaker-v1\.bin"):
        load_photomaker_into(model, file_v2)
    with pytest.raises(UnsupportedAdapter, match=r"v1\.bin: is PhotoMaker v1.*photomaker-v2\.bin"):
        load_photomaker_into(model_v2, file)
