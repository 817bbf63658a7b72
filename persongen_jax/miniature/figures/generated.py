"""What is in generated images: of the base, and of the shipped adapter on strangers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.drawing import people
from data_pipeline.drawing.identities import GROUP
from data_pipeline.prompts import join_parts
from persongen_jax.config import load_config
from persongen_jax.metrics.clip_score import ClipScore
from persongen_jax.metrics.face_embedder import FaceEmbedder
from persongen_jax.miniature.elements.questions import (
    MARK,
    at_the_mark,
    expressions_of,
    scenes_of,
    with_word,
)
from persongen_jax.miniature.figures.networks import first_rank, first_rank_in_groups
from persongen_jax.miniature.figures.samples import (
    held_out,
    mean_of,
    relative,
    share,
    whole_prompts,
)
from persongen_jax.pipeline import Pipeline

GUIDANCE = 2.0  # of the base; above 3, contrast grows too strong
STEPS = 30
PROMPT_SCENES = ("mountains", "city", "desert", "room")  # of configs/mini/prompts.json
STRANGERS = 100
PARTS = {"eyes": [0, 1], "brows": [2, 3], "mouth": [4]}  # in the order of people.PARTS
GENERATED = "people:{split}?identities={count}&pictures=2&first_picture=1000000&framing=portrait"


def measure_base(pipe: Pipeline, clip: ClipScore, parts: Any, out: Path, samples: int) -> dict:
    """Does the image show what the prompt names, and a whole face?

    Args:
        clip: the judge of scenes, clothes, and expressions.
        parts: the judge of inner faces, networks.parts_judge's function.
        out: gets base_samples.png.
        samples: number of images; each has its own prompt, of a portrait.
    """
    drawn = held_out(samples, 1, first=40_000, portrait=True)
    images = pipe(
        whole_prompts(drawn),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        seed=0,
        output_type="np",
    ).images
    images = np.rint(np.asarray(images) * 255).astype(np.uint8)
    Image.fromarray(people.contact_sheet(images[:64], 16)).save(out / "base_samples.png")
    figures = {}
    goals = {
        "scene": {"bar": 0.97, "aim": 0.99},
        "clothes_colour": {"bar": 0.98, "aim": 0.99},
        "clothes": {},
        "expression": {},
    }
    for name, goal in goals.items():
        judged, real = (
            JUDGES[name](clip, shown, drawn) == drawn.attributes[name]
            for shown in (images, drawn.images)
        )
        figures[f"base_{name}"] = relative(judged, real, judge="CLIP judge", **goal)
        bar = 0.98 if name == "scene" else None  # the judge's own, not the base's
        figures[f"clip_judge_{name}"] = share(real, bar=bar)
    seen, real = parts(images), parts(drawn.images)
    for name, columns in PARTS.items():
        judged, truth = (found[:, columns].all(1) for found in (seen, real))
        figures[f"base_{name}"] = relative(judged, truth, bar=0.90, aim=0.97, judge="parts judge")
    return figures


def measure_photomaker(assets: Path, clip: ClipScore, faces: FaceEmbedder) -> dict:
    """The shipped adapter on people whom no training has seen, each from one picture.

    Every stranger in four scenes; look-alikes, ten of whom differ in the inner face only, too.
    """
    from persongen_jax.evaluation.people import Evaluation
    from persongen_jax.systems.open import open_system

    config = load_config("configs/mini/photomaker.py", {})
    config.base, config.id_encoder = str(assets / "sdxl"), str(assets / "clip")
    config.start_from = str(assets / "photomaker-v1.safetensors")
    config.validate_in_train = config.validation_gallery = ""
    config.validate_out_of_train = GENERATED.format(split="out_of_train", count=STRANGERS)
    config.validate_out_of_domain = GENERATED.format(split="look_alikes", count=STRANGERS)
    config.validation_people, config.validation_images = STRANGERS, 1
    config.metrics = ()
    system: Any = open_system(config)
    results = Evaluation(system)(system.model, 0)
    strangers, alike = (results[name].images for name in ("out_of_train", "out_of_domain"))

    judge = {"judge": "face judge"}
    one = _compare(faces, strangers, "out_of_train")
    figures = {
        "photomaker_rank1_of_10": share(one.of_ten, one.owner, bar=0.90, aim=0.97, **judge),
        "photomaker_rank1_of_100": share(one.of_all, one.owner, bar=0.65, aim=0.85, **judge),
        "photomaker_cosine_true": mean_of(one.true[one.found], one.owner[one.found], **judge),
        "photomaker_cosine_others": mean_of(one.others[one.found], one.owner[one.found], **judge),
        "photomaker_faces_found": share(one.found, one.owner, judge="keypoint judge"),
    }
    other = _compare(faces, alike, "look_alikes")
    # Ten look-alikes have one gallery: what is found about them is dependent.
    group = np.repeat(np.arange(STRANGERS // GROUP), len(other.of_ten) * GROUP // STRANGERS)
    figures["photomaker_rank1_of_10_look_alikes"] = share(
        other.of_ten, group, bar=0.40, aim=0.60, **judge
    )
    scenes = np.tile(PROMPT_SCENES, STRANGERS)
    right = scene_judge(clip, strangers.reshape(-1, *strangers.shape[3:])) == scenes
    figures["photomaker_scene"] = share(right, one.owner, bar=0.8, judge="CLIP judge")
    return figures


@dataclass
class Compared:
    """Generated images beside drawn ones of the same people, [n] each.

    owner: whose the image is to be. found: whether a face was found; where not, nobody is right.
    of_ten, of_all: whether the right one is the nearest in the own group of ten, and among all.
    true, others: the cosine to the right person, and the mean of those to all others.
    """

    owner: np.ndarray
    found: np.ndarray
    of_ten: np.ndarray
    of_all: np.ndarray
    true: np.ndarray
    others: np.ndarray


def _compare(faces: FaceEmbedder, images: np.ndarray, split: str) -> Compared:
    """Images [people, prompts, 1, h, w, 3]; the gallery is of pictures that nobody refers to."""
    count, prompts = images.shape[:2]
    embeddings, found = faces.embed(images.reshape(-1, *images.shape[3:]))
    drawn = held_out(count, 2, first=70_000, split=split, portrait=True)
    gallery = faces.embed(drawn.images)[0].reshape(count, 2, -1).mean(1)
    gallery /= np.maximum(np.linalg.norm(gallery, axis=1, keepdims=True), 1e-12)
    names = np.asarray(drawn.identity)[::2]
    owner = np.repeat(names, prompts)
    cosine, own = embeddings @ gallery.T, names[None] == owner[:, None]
    return Compared(
        owner=owner,
        found=found,
        of_ten=found & first_rank_in_groups(embeddings, owner, gallery, names),
        of_all=found & first_rank(embeddings, owner, gallery, names),
        true=cosine[own],
        others=(cosine * ~own).sum(1) / (~own).sum(1),
    )


# ---- The CLIP judge's questions ------------------------------------------------------------------


def scene_judge(
    clip: ClipScore, images: np.ndarray, drawn: people.People | None = None
) -> np.ndarray:
    """Names of scenes [n]."""
    del drawn
    return scenes_of(clip, clip.image_features(images))


def colour_judge(clip: ClipScore, images: np.ndarray, drawn: people.People) -> np.ndarray:
    """Colours [n] of the clothes; the judge knows everything else."""
    return _in_body(clip, images, drawn, "clothes_colour", people.COLOUR_NAMES)


def clothes_judge(clip: ClipScore, images: np.ndarray, drawn: people.People) -> np.ndarray:
    """Kinds [n] of the clothes; the judge knows everything else."""
    return _in_body(clip, images, drawn, "clothes", people.CLOTHES)


def expression_judge(clip: ClipScore, images: np.ndarray, drawn: people.People) -> np.ndarray:
    """Expressions [n]; the judge knows nothing else of the caption."""
    del drawn
    return expressions_of(clip, clip.image_features(images))


def _in_body(clip, images, drawn, name, options):
    """The option that, in place of the true one in the caption of the body, fits best, [n]."""
    bodies = zip(drawn.bodies, drawn.attributes[name], strict=True)
    # The word's place is sought in the body's caption: a background may have the same word.
    marked = [with_word(body, true, MARK) for body, true in bodies]
    texts = [join_parts(*parts) for parts in zip(drawn.backgrounds, marked, strict=True)]
    return at_the_mark(clip, clip.image_features(images), texts, options)


JUDGES = {
    "scene": scene_judge,
    "clothes_colour": colour_judge,
    "clothes": clothes_judge,
    "expression": expression_judge,
}
