"""The published IP-Adapter: several tokens per image (Ye et al., arXiv 2308.06721).

The base variant reads an image encoder's pooled embedding (4 tokens), plus reads its patches
through a resampler (16 tokens), FaceID reads a face recogniser's embedding (4 tokens). A parallel
branch "identity" of every cross-attention reads the tokens of all references.
weights/formats/ip_adapter.py reads and writes the files; training from scratch is possible as well.

An example without references reads IP-Adapter's own "no image", as in its training: zeros through
the projection; for plus, zeros through the encoder, a uniform grey image.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Batch, Field
from data_pipeline.pictures.transforms import CLIP_MEAN, CLIP_STD
from data_pipeline.records.schema import MAX_REFERENCES
from persongen_jax.diffusion.conditioning import Conditioning
from persongen_jax.methods.base import Method, Model, Parts, condition_on_text, prompts, references
from persongen_jax.methods.published.photomaker import ATTENTION_LAYERS
from persongen_jax.methods.start import find_origin, image_encoder_of, load_remaining
from persongen_jax.models.branches import add_branch
from persongen_jax.models.layers import Linear
from persongen_jax.models.lora import add_lora
from persongen_jax.weights.files.directory import read_config
from persongen_jax.weights.formats.arcface import load_arcface
from persongen_jax.weights.formats.clip import load_vision_tower
from persongen_jax.weights.formats.ip_adapter import (
    HEAD_DIM,
    PROJECTIONS,
    load_ip_adapter_into,
    read_ip_adapter,
)

BRANCH = "identity"
LORA_ROW = (r"unet/.*/lora/(down|up)", "lora")


class IPAdapter(Method):
    """Image tokens in the stream "identity", made by ``model.image_proj``; perhaps LoRA.

    The prompt is an ordinary one. A published FaceID file was trained on aligned faces and needs
    aligned references (persongen_jax/generate/files.py); what is trained here reads the square
    crops that all methods read.

    Attributes:
        branch: its name, and that of the stream that it reads.
    """

    image_tower = "image_encoder"
    at_trigger = False
    branch = BRANCH
    groups: tuple[tuple[str, str], ...] = (
        (r"image_proj/.*", "projections"),
        (rf"unet/.*/attn2/branches/{BRANCH}/to_[kv]/kernel", "identity"),
    )

    def attach(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        """The image encoder, ``image_proj``, the branch and, with a rank, LoRA.

        ``config.start_from`` may name an IP-Adapter file, which then sets the variant and every
        size, or an earlier run, which may have started from such a file. Otherwise reads
        config.image_proj ("base", "plus", "faceid") and image_lora_rank (0: none); dtype; and the
        encoder's path: id_encoder (default: ``<base>/image_encoder``), for faceid face_net.

        Raises:
            ValueError: an unknown variant, or one made for another image encoder.
        """
        model: Model = parts.model
        kind, rank, sizes = config.get("image_proj", "base"), config.get("image_lora_rank", 0), {}
        origin = find_origin(config)
        if origin.file:
            with read_ip_adapter(origin.file) as file:
                kind, rank, sizes = file.kind, file.rank, file.sizes
        if kind not in PROJECTIONS:
            raise ValueError(f"config.image_proj={kind!r}: known are {', '.join(PROJECTIONS)}")
        encoder = _open_encoder(kind, config)
        width = _width(kind, encoder)
        sizes = sizes or _published_sizes(kind, width, model.unet.config["cross_attention_dim"][-1])
        if sizes["in_features"] != width:
            raise ValueError(
                f"{origin.file}: its {kind} projection reads features of width "
                f"{sizes['in_features']}, the image encoder's are {width} wide. Give the encoder "
                "that it was made for: "
                "ViT-bigG 1280, ViT-H 1024 (plus: 1280), ArcFace 512."
            )
        model.image_encoder = encoder
        kw = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.float32, "rngs": rngs}
        model.image_proj = PROJECTIONS[kind](**sizes, **kw)
        add_branch(model.unet, self.branch)
        if rank:
            add_lora(model.unet, ATTENTION_LAYERS, rank, alpha=float(rank), rngs=rngs)
            self.groups = (*type(self).groups, LORA_ROW)
        if origin.file:
            load_ip_adapter_into(model, origin.file, self.branch)
        load_remaining(model, origin)

    def fields(self, parts: Parts, config: ConfigDict) -> tuple[Field, ...]:
        return prompts(parts, config, at_trigger=self.at_trigger), references(
            self, parts.model, config
        )

    def reference_size(self, model: Model) -> int:
        config = model.image_encoder.config
        return config["input_size" if _is_faceid(model) else "image_size"]

    def condition(self, model: Model, batch: Batch) -> Conditioning:
        """Stream "identity": [b, r * n, d], the n tokens of each reference concatenated.

        If the batch has ``face_embeds`` [b, r, e], FaceID uses these instead of the pixels.
        """
        tokens, nothing = image_tokens(model, self._features(model, batch))
        b, r, n, d = tokens.shape
        present = batch["id_mask"].any(axis=1)
        # Without references: "no image", once for every possible person.
        first = jnp.arange(r) % MAX_REFERENCES == 0
        mask = jnp.where(present[:, None], batch["id_mask"], first)
        tokens = jnp.where(present[:, None, None, None], tokens, nothing)
        tokens, mask = tokens.reshape(b, r * n, d), jnp.repeat(mask, n, axis=1)
        return condition_on_text(model, batch).with_stream(self.branch, tokens, mask)

    def encode_references(self, model: Model, id_pixel_values: jax.Array) -> jax.Array:
        """The input of ``image_proj``: [b, r, d]; for plus, every patch: [b, r, m, d]."""
        b, r = id_pixel_values.shape[:2]
        features = _encode(model, id_pixel_values.reshape(b * r, *id_pixel_values.shape[2:]))
        return features.reshape(b, r, *features.shape[1:])

    def _features(self, model, batch):
        if "id_features" in batch:
            return batch["id_features"]
        if _is_faceid(model) and "face_embeds" in batch:
            return batch["face_embeds"]
        return self.encode_references(model, batch["id_pixel_values"])


def image_tokens(model: Model, features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Features [b, r, ...] to each reference's tokens [b, r, n, d] and no image's [n, d]."""
    b, r = features.shape[:2]
    features = features.reshape(b * r, *features.shape[2:])
    if model.image_proj.reads == "hidden_states":
        size = model.image_encoder.config["image_size"]
        nothing = _encode(model, jnp.zeros((1, size, size, 3), jnp.float32))
    else:
        nothing = jnp.zeros_like(features[:1])
    tokens = model.image_proj(jnp.concatenate([features, nothing]))
    return tokens[:-1].reshape(b, r, *tokens.shape[1:]), tokens[-1]


def _encode(model, images):
    """Maps [k, s, s, 3] normalised for CLIP to [k, ...]."""
    if _is_faceid(model):
        embeds = model.image_encoder(2 * (images * CLIP_STD + CLIP_MEAN) - 1)
        return embeds / jnp.linalg.norm(embeds, axis=-1, keepdims=True)
    if model.image_proj.reads == "image_embeds":
        return model.image_encoder(images).image_embeds
    return model.image_encoder(images).hidden_states[-2]


def _is_faceid(model) -> bool:
    return model.image_proj.reads == "face_embeds"


def _open_encoder(kind: str, config):
    """The image tower, with its projection if ``kind`` reads its output; or the recogniser."""
    dtype = jnp.dtype(config.dtype)
    if kind == "faceid":
        name = config.get("face_net", "")
        path = Path(name)
        if name in ("", "auto", "sface"):  # the last two are for Face-Sim
            raise ValueError(
                f"config.face_net={name!r}; FaceID reads the embeddings of a face recogniser, "
                "ArcFace: give its file (antelopev2's glintr100.onnx, buffalo_l's w600k_r50.onnx), "
                "to generate as --image-encoder, to load_method as encoder"
            )
        if path.is_dir():  # one of this project's, whose config names the size
            size = read_config(path).get("input_size")
            return load_arcface(path / "model.safetensors", input_size=size, dtype=dtype).model
        return load_arcface(path, dtype=dtype).model
    folder = config.id_encoder or image_encoder_of(config)
    tower, projection = load_vision_tower(folder, dtype=dtype)
    if kind == "base":
        if projection is None:
            raise ValueError(
                f"{folder}: an image tower without visual_projection, which the base variant "
                "needs; give CLIPVisionModelWithProjection's folder"
            )
        kw = {"dtype": dtype, "param_dtype": dtype, "rngs": nnx.Rngs(0)}
        tower.visual_projection = Linear(*projection.shape, use_bias=False, **kw)
        tower.visual_projection.kernel.set_value(projection)
    return tower


def _width(kind: str, encoder) -> int:
    """Width of the features that the encoder gives this variant."""
    if kind == "base":
        return encoder.visual_projection.kernel.shape[1]
    return encoder.config["hidden_size" if kind == "plus" else "embedding_dim"]


def _published_sizes(kind: str, width: int, features: int) -> dict:
    """The published variants' sizes, scaled to the encoder and the UNet."""
    if kind != "plus":
        return {"in_features": width, "features": features, "num_tokens": 4}
    heads = max(1, width // HEAD_DIM)
    sizes = {"features": heads * HEAD_DIM, "heads": heads, "head_dim": HEAD_DIM, "num_layers": 4}
    return {**sizes, "in_features": width, "out_features": features, "num_tokens": 16}
