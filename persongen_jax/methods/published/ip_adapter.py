"""The published IP-Adapter: several tokens per image (Ye et al., arXiv 2308.06721).

The base variant reads an image encoder's pooled embedding (4 tokens), plus reads its patches
through a resampler (16 tokens; Plus-Face is plus on faces), FaceID reads a face recogniser's
embedding (4 tokens; Portrait 16), FaceID Plus that and the patches of the aligned face. A parallel
branch "identity" of every cross-attention reads the tokens of all references.
weights/formats/ip_adapter.py reads and writes the files; training from scratch is possible as well.

An example without references reads IP-Adapter's own "no image", as in its training: zeros through
the projection; for what reads patches, those of zeros through the encoder, a uniform grey image.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Batch, Encoding, Field
from data_pipeline.examples.identity.faces import Faces
from data_pipeline.records.schema import MAX_REFERENCES
from persongen_jax.diffusion.conditioning import Conditioning
from persongen_jax.methods.base import Method, Model, Parts, condition_on_text, prompts, references
from persongen_jax.methods.published.photomaker import ATTENTION_LAYERS
from persongen_jax.methods.readers import (
    AlignedFaceReader,
    add_face_encoder,
    check_face_encoder,
    open_projected_tower,
)
from persongen_jax.methods.start import (
    find_origin,
    image_encoder_of,
    load_remaining,
)
from persongen_jax.models.branches import add_branch
from persongen_jax.models.lora import add_lora
from persongen_jax.models.sdxl.parts import StableDiffusionXL
from persongen_jax.weights.formats.clip import load_vision_tower
from persongen_jax.weights.formats.identity.ip_adapter_variants import (
    FACES,
    HEAD_DIM,
    PROJECTIONS,
)
from persongen_jax.weights.formats.ip_adapter import load_ip_adapter_into, read_ip_adapter
from persongen_jax.weights.formats.recognisers import SFACE

BRANCH = "identity"
LORA_ROW = (r"unet/.*/lora/(down|up)", "lora")
MADE_FOR = "ViT-bigG 1280, ViT-H 1024 (patches 1280), ArcFace 512"


class IPAdapter(AlignedFaceReader, Method):
    """Image tokens in the stream "identity", made by ``model.image_proj``; perhaps LoRA.

    The prompt is an ordinary one. The FaceID variants read faces aligned by their landmarks; base
    and plus what config.references says, by default the square around the face.

    Attributes:
        branch: its name, and that of the stream that it reads.
    """

    image_tower = "image_encoder"
    at_trigger = False
    branch = BRANCH
    options = ("references", "shortcut", "s_scale")
    groups: tuple[tuple[str, str], ...] = (
        (r"image_proj/.*", "projections"),
        (rf"unet/.*/attn2/branches/{BRANCH}/to_[kv]/kernel", "identity"),
    )

    def attach(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        """The encoders, ``image_proj``, the branch and, with a rank, LoRA.

        ``config.start_from`` may name an IP-Adapter file, which then sets the variant and every
        size, or an earlier run, which may have started from such a file. Otherwise reads
        config.image_proj ("base", "plus", "faceid", "faceid-plus") and image_lora_rank (0: none);
        dtype; and the encoders' paths: id_encoder (default: ``<base>/image_encoder``), and for
        the FaceID variants face_encoder, a recogniser. FaceID Plus: shortcut and s_scale.

        Raises:
            ValueError: an unknown variant, one made for another encoder, or no recogniser.
        """
        model: Model = parts.model
        kind, rank, sizes = config.get("image_proj", "base"), config.get("image_lora_rank", 0), {}
        origin = find_origin(config)
        if origin.file:
            with read_ip_adapter(origin.file) as file:
                kind, rank, sizes = file.kind, file.rank, file.sizes
        if kind not in PROJECTIONS:
            raise ValueError(f"config.image_proj={kind!r}: known are {', '.join(PROJECTIONS)}")
        widths = _add_encoders(model, kind, config)
        sizes = sizes or _published_sizes(
            kind, model.unet.config["cross_attention_dim"][-1], widths
        )
        for name, width in widths.items():
            if sizes[name] != width:
                raise ValueError(
                    f"{origin.file}: its {kind} projection reads features of width {sizes[name]}, "
                    f"its encoder's are {width} wide. Give the encoder that it was made for: "
                    f"{MADE_FOR}."
                )
        if kind == "faceid-plus":
            sizes = {**sizes, "shortcut": config.get("shortcut", True)}
            sizes["s_scale"] = config.get("s_scale", 1.0)
        kw = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.float32, "rngs": rngs}
        model.image_proj = PROJECTIONS[kind](**sizes, **kw)
        add_branch(model.unet, self.branch)
        if rank:
            add_lora(model.unet, ATTENTION_LAYERS, rank, alpha=float(rank), rngs=rngs)
            self.groups = (*type(self).groups, LORA_ROW)
        if origin.file:
            load_ip_adapter_into(model, origin.file, self.branch)
        load_remaining(model, origin)

    # ---- what it reads ----

    def fields(self, parts: Parts, config: ConfigDict) -> tuple[Field, ...]:
        model: Model = parts.model
        text = prompts(parts, config, at_trigger=self.at_trigger)
        if not _reads_faces(model):
            return text, references(self, model, config)
        faces = self.faces(model)
        if not _reads_patches(model):
            return text, faces
        pictures = face_pictures(model)
        faces.paired = pictures.paired = True
        return text, faces, pictures

    def reference_size(self, model: Model) -> int:
        return model.image_encoder.config["image_size"]

    def encode_references(self, model: Model, id_pixel_values: jax.Array) -> jax.Array:
        """The input of base and plus: [b, r, d]; for plus, every patch: [b, r, m, d]."""
        b, r = id_pixel_values.shape[:2]
        features = _encode(model, id_pixel_values.reshape(b * r, *id_pixel_values.shape[2:]))
        return features.reshape(b, r, *features.shape[1:])

    def condition(self, model: Model, batch: Batch) -> Conditioning:
        """Stream "identity": [b, r * n, d], the n tokens of each reference concatenated."""
        tokens, nothing = image_tokens(model, *self._features(model, batch))
        b, r, n, d = tokens.shape
        present = batch["id_mask"].any(axis=1)
        # Without references: "no image", once for every possible person.
        first = jnp.arange(r) % MAX_REFERENCES == 0
        mask = jnp.where(present[:, None], batch["id_mask"], first)
        tokens = jnp.where(present[:, None, None, None], tokens, nothing)
        tokens, mask = tokens.reshape(b, r * n, d), jnp.repeat(mask, n, axis=1)
        return condition_on_text(model, batch).with_stream(self.branch, tokens, mask)

    def _features(self, model, batch):
        """The inputs of ``image_proj``, [b, r, ...] each."""
        if not _reads_faces(model):
            if "id_features" in batch:
                return (batch["id_features"],)
            return (self.encode_references(model, batch["id_pixel_values"]),)
        embeds = self.face_embeds(model, batch)
        length = jnp.linalg.norm(embeds, axis=-1, keepdims=True)
        embeds = embeds / jnp.where(length == 0, 1, length)
        if not _reads_patches(model):
            return (embeds,)
        if "image_features" in batch:
            return embeds, batch["image_features"]
        return embeds, self.encode_references(model, batch["image_pixel_values"])


def face_pictures(model: Model) -> Faces:
    """The aligned faces as CLIP reads them, next to those that the recogniser reads."""

    def encode(model, pixels):
        return {"features": _encode(model, pixels)}

    encoding = Encoding(
        kind="photographs",  # the cache has one kind for each field
        weights=("image_encoder/",),
        encode=encode,
        signature=("aligned", "patches"),
        view=StableDiffusionXL.conditioner,
    )
    size = model.image_encoder.config["image_size"]
    field = Faces(size, encoding, name="face_pictures", prefix="image")
    field.reads_image = True  # a Face's embedding is for the recogniser's field
    return field


def image_tokens(model: Model, *features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Features [b, r, ...] to each reference's tokens [b, r, n, d] and no image's [n, d]."""
    b, r = features[0].shape[:2]
    inputs = []
    for number, each in enumerate(features, 1):
        each = each.reshape(b * r, *each.shape[2:])
        nothing = jnp.zeros_like(each[:1])
        if _reads_patches(model) and number == len(features):
            size = model.image_encoder.config["image_size"]
            nothing = _encode(model, jnp.zeros((1, size, size, 3), jnp.float32))
        inputs.append(jnp.concatenate([each, nothing.astype(each.dtype)]))
    tokens = model.image_proj(*inputs)
    return tokens[:-1].reshape(b, r, *tokens.shape[1:]), tokens[-1]


def _encode(model, images):
    """Maps [k, s, s, 3] normalised for CLIP to [k, ...]."""
    if _reads_patches(model):
        return model.image_encoder(images).hidden_states[-2]
    return model.image_encoder(images).image_embeds


def _reads_faces(model) -> bool:
    return "face_embeds" in model.image_proj.reads


def _reads_patches(model) -> bool:
    return "hidden_states" in model.image_proj.reads


# ---- Its encoders ------------------------------------------------------------------------------


def _add_encoders(model: Model, kind: str, config: ConfigDict) -> dict[str, int]:
    """Add what ``kind`` reads; the widths of what they give, by the projection's argument."""
    widths = {}
    if kind in FACES:
        named = _recogniser_of(config)
        check_face_encoder(named, "FaceID")
        widths["in_features"] = add_face_encoder(model, named, "FaceID")
    if kind != "faceid":
        model.image_encoder = _open_tower(kind, config)
        at = "image_features" if kind in FACES else "in_features"
        widths[at] = model.image_encoder.config["hidden_size"]
    if kind == "base":
        widths["in_features"] = model.image_encoder.visual_projection.kernel.shape[1]
    return widths


def _recogniser_of(config: ConfigDict) -> ConfigDict:
    """The keys that name the recogniser: face_encoder, in older runs face_net."""
    named, older = config.get("face_encoder", ""), config.get("face_net", "")
    named = named or ("" if older in ("auto", SFACE) else older)  # these are for Face-Sim alone
    return ConfigDict({"face_encoder": named, "dtype": config.dtype})


def _open_tower(kind: str, config):
    """The image tower, for base with its projection."""
    dtype = jnp.dtype(config.dtype)
    folder = config.id_encoder or image_encoder_of(config)
    if kind == "base":
        return open_projected_tower(folder, dtype, "the base variant")
    return load_vision_tower(folder, dtype=dtype)[0]


def _published_sizes(kind: str, features: int, widths: dict[str, int]) -> dict:
    """The published variants' sizes, scaled to the encoders and the UNet."""
    if kind != "plus":
        return {**widths, "features": features, "num_tokens": 4}
    width = widths["in_features"]
    heads = max(1, width // HEAD_DIM)
    sizes = {"features": heads * HEAD_DIM, "heads": heads, "head_dim": HEAD_DIM, "num_layers": 4}
    return {**sizes, "in_features": width, "out_features": features, "num_tokens": 16}
