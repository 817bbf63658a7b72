"""One request of the page, from what people enter to images with their notes and scores."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipeline.examples.identity.bodies import Bodies
from data_pipeline.examples.identity.faces import Faces
from data_pipeline.faces.face import Face
from data_pipeline.prompts import has_trigger, join_parts
from data_pipeline.records.captions import CLASS_WORDS, propose_caption
from persongen_jax.demo.judging import Judges
from persongen_jax.demo.offers import Models, Offer, short, without_folders
from persongen_jax.demo.photographs import choose_face, crop_of
from persongen_jax.diffusion.options import SamplingOptions
from persongen_jax.diffusion.strengths import Strength
from persongen_jax.generate.method import add_face_points
from persongen_jax.generate.pose import find_bodies, pose_image
from persongen_jax.pipeline.images import image_size
from persongen_jax.pipeline.saving import ImageFolder
from persongen_jax.pipeline.watermark import has_room
from persongen_jax.pose_nets import open_pose_net


class Cancelled(Exception):
    """Somebody ended the request."""


@dataclass(frozen=True)
class Person:
    """Photographs, uint8 [h, w, 3] each, and which face of each, the largest being 0."""

    photographs: tuple[np.ndarray, ...]
    faces: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """What is asked for. Every default is the command's.

    Attributes:
        parts: additional prompts by name, background and body.
        regions: a mask per person, [h, w] bool; None: one person, everywhere.
        scales: strengths by name, see SamplingOptions.
        pose: a photograph whose pose is followed.
    """

    prompt: str
    negative: str = ""
    parts: dict[str, str] = field(default_factory=dict)
    people: tuple[Person, ...] = ()
    regions: tuple[np.ndarray, ...] | None = None
    scales: dict[str, Strength] = field(default_factory=dict)
    pose: np.ndarray | None = None
    seed: int = 42
    steps: int = 50
    guidance: float = 5.0
    sampler: str | None = None
    height: int | None = None
    width: int | None = None
    images: int = 1


@dataclass(frozen=True)
class Made:
    """An image, uint8 [h, w, 3], with what the file says of it and how it was judged."""

    image: np.ndarray
    notes: dict
    face_sim: float | None
    clip_t: float | None


def with_trigger(pipe: Any, prompt: str, people: Sequence[Person]) -> str:
    """The prompt with the trigger word after the class word, where the method needs it.

    Raises:
        ValueError: it does not say who it is.
    """
    text = pipe.text
    word = text.trigger_word
    if not people or not text.at_trigger or has_trigger(prompt, word):
        return prompt
    marked, found = propose_caption(prompt, "", None, word)
    if not marked.startswith(prompt[: marked.find(f" {word}")]) or not found:
        raise ValueError(
            f"the prompt does not say who it is: write one of {', '.join(CLASS_WORDS)} into it, or "
            f'"{word}" after another word for the person'
        )
    return marked


def paint(
    models: Models,
    offer: Offer,
    request: Request,
    *,
    judges: Judges,
    pose_net: str = "",
    progress: Callable[[int], object] | None = None,
    on_preview: Callable[[np.ndarray], object] | None = None,
    checker: Callable[[list], np.ndarray] | None = None,
) -> tuple[list[Made], list[str]]:
    """Generate what is asked for: the images, and what there is to say about the call.

    Args:
        pose_net: finds joints, by its name for the command.
        progress, on_preview: as the pipeline's; what they raise ends the request.
        checker: says which images are not shown; with it there is no preview.

    Raises:
        ValueError: whatever cannot be done; the message names it.
    """
    pipe = models.open(offer)
    with models.computing, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if request.pose is None:  # a ControlNet is there for those who give one
            warnings.filterwarnings("ignore", message=".*no control_image is given")
        people = request.people if pipe.reads_references else ()
        said = _left_out(pipe, request)
        prompt = with_trigger(pipe, request.prompt, people)
        apart = {n: t for n, t in request.parts.items() if t.strip() and n in pipe.streams}
        joined = [t for n, t in request.parts.items() if t.strip() and n not in pipe.streams]
        options = SamplingOptions(
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            scheduler=request.sampler,
            seed=request.seed,
            height=request.height,
            width=request.width,
            num_images_per_prompt=request.images,
            scales=dict(request.scales) if people or not pipe.reads_references else None,
            output_type="np",
        )
        crops, given = _references(pipe, models, offer, people, pose_net)
        given |= {name: [text] for name, text in apart.items()}
        if request.regions is not None and people:
            given["regions"] = [list(request.regions)]
        if request.pose is not None:
            given |= _pose(pipe, request, pose_net)
        images = pipe(
            [join_parts(prompt, *joined)],
            request.negative or None,
            options=options,
            progress=progress,
            on_preview=on_preview if checker is None else None,
            **given,
        ).images
        images = (np.asarray(images) * 255).round().astype(np.uint8)
        if checker is not None and (hidden := checker(list(images))).any():
            images[hidden] = 0
            said.append(f"{hidden.sum()} of {len(images)} images are black: the safety checker")
        text = join_parts(pipe.text.without_trigger(request.prompt), *request.parts.values())
        first = crops[0] if len(crops) == 1 else []  # of two, nobody knows whose face is found
        scores = zip(judges.face_sim(images, first), judges.clip_t(images, text), strict=True)
    said += messages(told)
    notes = (_notes(offer, request, prompt, number) for number in range(len(images)))
    made = [
        Made(*each, *both)
        for each, both in zip(zip(images, notes, strict=True), scores, strict=True)
    ]
    return made, list(dict.fromkeys(said))


def messages(told: Sequence[warnings.WarningMessage]) -> list[str]:
    """Of warnings that speak to the user, the sentences."""
    own = (w for w in told if issubclass(w.category, UserWarning))
    return [without_folders(str(w.message).partition("\n")[0]) for w in own]


def _left_out(pipe: Any, request: Request) -> list[str]:
    """What is entered and has no effect with this model."""
    said = []
    if request.people and not pipe.reads_references:
        said.append("the photographs have no effect: this model reads no references")
    if request.scales and not request.people and pipe.reads_references:
        said.append("the strengths have no effect without a photograph")
    if not request.people and pipe.reads_references:
        said.append("nobody's photograph is given, so the base generates alone")
    return said


def _references(pipe, models, offer, people, pose_net):
    """(crops by person, the pipeline's arguments that carry the people)."""
    if not people:
        return [], {}
    detector = models.detector(offer)
    crops, located = [], []
    for k, person in enumerate(people, 1):
        crops.append([])
        located.append([])
        for n, (photo, number) in enumerate(zip(person.photographs, person.faces, strict=True), 1):
            whose = f"photograph {n}" + (f" of person {k}" if len(people) > 1 else "")
            face = choose_face(photo, detector, number, whose)
            crops[-1].append(crop_of(photo, face))
            located[-1].append(Face(photo, np.asarray(face.landmarks, np.float64)))
    whole = [list(person.photographs) for person in people]
    given: dict[str, Any] = {"references": [crops]}
    if getattr(pipe.conditioner.identity[0], "whole", False):
        given["references"] = [whole]
    for each in pipe.fields:
        if each.by_name and isinstance(each, Faces):
            given[each.name] = [located]
        elif each.by_name and isinstance(each, Bodies):
            given[each.name] = [find_bodies(whole, pose_net or None)]
        elif each.by_name:
            given[each.name] = [whole]
    add_face_points(pipe.fields, given)
    return crops, given


def _pose(pipe, request, pose_net):
    """The arguments that carry the skeleton of the photograph."""
    if not pose_net:
        raise ValueError("the pose: no network finds joints here; start the page with --pose-net")
    size = image_size(pipe.base, request.height, request.width)
    if pipe.controlnets.nets:
        return {"control_image": pose_image(request.pose, open_pose_net(pose_net), *size)}
    if "pose" in pipe.conditioner.inputs:
        return {"pose": [pose_image(request.pose, open_pose_net(pose_net), *size)]}
    raise ValueError(
        "the pose: this model follows none; start the page with a --controlnet that reads "
        "skeletons, or choose a method that reads poses"
    )


def _notes(offer: Offer, request: Request, prompt: str, number: int) -> dict:
    """As generate's, for the PNG."""
    settings: dict[str, Any] = {
        "model": offer.name,
        "base": short(offer.base),
        "method_weights": short(offer.weights),
        "lora": [short(lora) for lora in offer.loras],
        "steps": request.steps,
        "guidance": request.guidance,
        "scheduler": request.sampler,
        "height": request.height,
        "width": request.width,
        "images": request.images,
        "scale": request.scales,
    }
    notes = {"prompt": prompt, "negative_prompt": request.negative}
    notes |= {name: text for name, text in request.parts.items() if text.strip()}
    return notes | {"seed": request.seed, "index": number, "number": number, "settings": settings}


def save(made: Sequence[Made], folder: ImageFolder) -> list[str]:
    """Writes the images, marked or not as the folder does; their files."""
    paths = []
    for each in made:
        mark = folder.write.mark and has_room(*each.image.shape[:2])
        notes = {**each.notes, "settings": {**each.notes["settings"], "watermark": mark}}
        paths.append(str(folder.save(each.image, notes)))
    return paths
