"""CLIP-T: does the image show what the prompt says (Radford et al., arXiv 2103.00020)?

100 times the cosine of CLIP's image and text embeddings. Figures from different CLIPs are never
comparable; the thesis used ViT-L/14 at 336 pixels.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from data_pipeline.pictures.reading import load_image
from data_pipeline.pictures.transforms import clip_preprocess
from persongen_jax.models.encoders.eva_clip import EvaClipVisionModel
from persongen_jax.weights.errors import WeightsError
from persongen_jax.weights.formats.clip import load_clip

BATCH = 8  # images or texts at once
NO_TEXT = "holds an image tower alone, and CLIP-T needs the text tower too: give a whole CLIP"
LENGTHS = 16  # texts are padded to a multiple of as many tokens


class ClipScore:
    """CLIP-T by the CLIP in a transformers directory, or in OpenAI's, OpenCLIP's or EVA's file.

    Args:
        folder: a CLIPModel's, such as openai/clip-vit-large-patch14-336, or a file (``load_clip``).
        dtype: of the computation.

    Attributes:
        family: "CLIP" or "EVA-CLIP", by the image tower's architecture.
        has_text: whether there is a text tower; an EVA-CLIP's file may have none.
        note: which activation a file was taken to have, and why; "" for a directory.
        vision_config: the image tower's sizes, by transformers' names.
        networks: the weights of the image and of the text tower, if any, an nnx.State each.

    Raises:
        WeightsError: it does not exist, or is no CLIP.
    """

    def __init__(self, folder: str | Path, *, dtype: DTypeLike = jnp.float32):
        clip = load_clip(folder, dtype=dtype)
        self.name, self.note = str(folder), clip.note
        self.tokenizer: Any = clip.tokenizer
        self.vision_config = clip.vision_model.config
        self.image_size = self.vision_config["image_size"]
        self.family = "EVA-CLIP" if isinstance(clip.vision_model, EvaClipVisionModel) else "CLIP"
        self._vision = nnx.split(clip.vision_model)
        self.networks: tuple = (self._vision[1],)
        self.has_text = clip.text_model is not None
        if clip.text_model is not None:
            self.text_length = clip.text_model.config["max_position_embeddings"]
            self._text = nnx.split(clip.text_model)
            self.networks = (self._vision[1], self._text[1])

    def image_features(
        self,
        images: Sequence[Any] | np.ndarray,
        prepare: Callable[[np.ndarray, int], np.ndarray] = clip_preprocess,
    ) -> np.ndarray:
        """Images, in any form that load_image accepts, to unit vectors [n, d].

        Args:
            prepare: uint8 [h, w, 3] and the tower's size to what it reads; see ``clip_preprocess``.
        """

        def embed(images):
            pixels = [prepare(load_image(image), self.image_size) for image in images]
            return _embed_images(*self._vision, np.stack(pixels))

        return in_batches(embed, images)

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to unit vectors [n, d]; text beyond CLIP's 77 tokens is cut.

        Raises:
            WeightsError: there is no text tower.
        """
        if not self.has_text:
            raise WeightsError(f"{self.name}: {NO_TEXT}")
        found = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.text_length
        )
        # What follows a text's end changes nothing; few lengths, so that little recompiles.
        longest = max(map(sum, found["attention_mask"]), default=0)
        length = min(-(-longest // LENGTHS) * LENGTHS, self.text_length)
        ids = [row[:length] for row in found["input_ids"]]
        return in_batches(lambda rows: _embed_texts(*self._text, np.array(rows, np.int32)), ids)

    def score(self, images: Sequence[Any], texts: Sequence[str]) -> np.ndarray:
        """CLIP-T of each image with its text, [n], in -100..100."""
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} images and {len(texts)} texts: give one text each")
        return self.score_features(self.image_features(images), texts)

    def score_features(self, image_features: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """``score`` of images whose features [n, d] are already known."""
        once = list(dict.fromkeys(texts))  # usually several images share a prompt
        features = self.text_features(once)[[once.index(text) for text in texts]]
        return 100 * (image_features * features).sum(-1)


def in_batches(embed: Callable, rows: Sequence[Any] | np.ndarray) -> np.ndarray:
    """``embed`` over batches of one size; the last is padded, so that nothing recompiles.

    Raises:
        ValueError: no rows.
    """
    if not len(rows):
        raise ValueError("nothing to embed: give at least one image or text")
    out = []
    for start in range(0, len(rows), BATCH):
        which = np.minimum(np.arange(start, start + BATCH), len(rows) - 1)
        out.append(embed([rows[i] for i in which]))
        out[-2:-1] = map(np.asarray, out[-2:-1])  # the last is awaited when the next is prepared
    return np.concatenate(out)[: len(rows)]


@functools.partial(jax.jit, static_argnums=0)
def _embed_images(graphdef, state, pixels):
    return unit(nnx.merge(graphdef, state)(pixels).image_embeds)


@functools.partial(jax.jit, static_argnums=0)
def _embed_texts(graphdef, state, input_ids):
    return unit(nnx.merge(graphdef, state)(input_ids).text_embeds)


def unit(rows: jax.Array) -> jax.Array:
    """Rows [n, d] in float32, of length 1."""
    rows = rows.astype(jnp.float32)
    return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
