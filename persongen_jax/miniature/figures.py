"""The quality of the miniature's networks, measured on unseen people and images.

    python -m persongen_jax.miniature.figures            # a few minutes; writes assets/figures.json

Each figure comes with its aim, its number of samples, and if it is judged, with the judge's
accuracy on real (drawn) images. Everything is read from the shipped checkpoints.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipeline.drawing import people
from data_pipeline.faces.align import align_faces
from data_pipeline.pictures.transforms import clip_preprocess, square_face_crop
from data_pipeline.prompts import join_parts, split_at_trigger
from persongen_jax.cli import command
from persongen_jax.config import load_config
from persongen_jax.metrics.clip_score import ClipScore
from persongen_jax.metrics.face_similarity import rank1
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.models.encoders.clip import CLIPVisionModel
from persongen_jax.models.faces.iresnet import IResNet, normalise_faces
from persongen_jax.models.faces.keypoint_net import KeypointNet
from persongen_jax.models.sdxl.vae import AutoencoderKL
from persongen_jax.pipeline import Pipeline
from persongen_jax.weights.formats.arcface import load_arcface
from persongen_jax.weights.formats.clip import load_vision_tower
from persongen_jax.weights.formats.keypoint_net import load_keypoint_net
from persongen_jax.weights.saver import write_json

SPLIT = "out_of_train"
FIRST_PICTURE = 5_000_000  # variations that no training set contains
GALLERY = 100
BATCH = 50
BASE_GUIDANCE = 2.0  # above 3, contrast grows too strong: at 4 the scene was right in 81 %
PROMPT_SCENES = ("mountains", "city", "desert", "room")  # of configs/mini/prompts.json


def held_out(
    people_count: int, pictures: int, first: int = 0, split: str = SPLIT, portrait: bool = False
) -> people.People:
    """``pictures`` images of each of ``people_count`` people, person by person."""
    number = np.arange(people_count * pictures)
    framing = (1, 0, 0) if portrait else people.FRAMING_WEIGHTS
    return people.examples(
        split, number // pictures, FIRST_PICTURE + first + number, framing_weights=framing
    )


def batched(function: Callable, *arrays: np.ndarray) -> Any:
    """``function`` over rows in batches of one size, so that it compiles once."""
    count = len(arrays[0])
    outputs = []
    for start in range(0, count, BATCH):
        rows = [array[start : start + BATCH] for array in arrays]
        short = BATCH - len(rows[0])
        rows = [np.concatenate([r, np.repeat(r[-1:], short, 0)]) if short else r for r in rows]
        output = jax.tree.map(lambda x, n=BATCH - short: np.asarray(x)[:n], function(*rows))
        outputs.append(output)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)


def compiled(model: nnx.Module, call: Callable) -> Callable:
    """``call(model, batch)`` under jit with the weights as arguments.

    Hundreds of images are worth the compiler's full effort, also where the tests ask for less.
    """
    graphdef, state = nnx.split(model)
    run = jax.jit(
        lambda state, *batch: call(nnx.merge(graphdef, state), *batch),
        compiler_options={"xla_backend_optimization_level": "3"},
    )
    return lambda *batch: run(state, *batch)


def measure_vae(vae: AutoencoderKL) -> dict:
    """Mean PSNR in dB, peak 255, over images that were encoded (posterior mean) and decoded."""
    drawn = held_out(250, 4)

    def reconstruct(vae, images):
        decoded = vae.decode(vae.encode(images.astype(jnp.float32) / 127.5 - 1).mean)
        return jnp.round(jnp.clip(decoded * 127.5 + 127.5, 0, 255))

    error = (batched(compiled(vae, reconstruct), drawn.images) - drawn.images) ** 2
    faces = [
        e[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))].mean()
        for e, (x0, y0, x1, y1) in zip(error, drawn.face_box, strict=True)
    ]
    return {
        "vae_psnr_db": _figure(_psnr(error.mean((1, 2, 3))), len(error), 28.0),
        "vae_face_psnr_db": _figure(_psnr(np.array(faces)), len(error), 26.0),
    }


def measure_face_net(net: IResNet, keypoint_net: KeypointNet) -> dict:
    """Rank-1 of one image against one of each, with the true landmarks and with detected ones."""
    size = net.config["input_size"]
    embed = compiled(net, lambda net, crops: net(normalise_faces(crops)))

    def embeddings(drawn, landmarks):
        return batched(embed, align_faces(drawn.images, landmarks, size))

    gallery = held_out(GALLERY, 1, portrait=True)
    probes = held_out(GALLERY, 10, first=10_000, portrait=True)
    figures = {}
    for name, points in (("", lambda d: d.landmarks), ("_by_keypoint_net", _found(keypoint_net))):
        rate = rank1(
            embeddings(probes, points(probes)),
            probes.identity,
            embeddings(gallery, points(gallery)),
            gallery.identity,
        )["rank1"]
        figures[f"face_net_rank1_of_100{name}"] = _figure(rate, len(probes), 0.98)
    return figures | _rank1_of_look_alikes(embeddings)


def _rank1_of_look_alikes(embeddings) -> dict:
    """Ten people who share everything but the inner face: rank-1 within the group."""
    gallery = held_out(100, 1, split="look_alikes", portrait=True)
    probes = held_out(100, 5, first=20_000, split="look_alikes", portrait=True)
    found = embeddings(gallery, gallery.landmarks).reshape(10, 10, -1)
    names = gallery.identity.reshape(10, 10)
    asked = embeddings(probes, probes.landmarks).reshape(10, 50, -1)
    labels = probes.identity.reshape(10, 50)
    groups = zip(asked, labels, found, names, strict=True)
    rate = np.mean([rank1(a, b, c, d)["rank1"] for a, b, c, d in groups])
    return {"face_net_rank1_of_10_look_alikes": _figure(rate, len(probes), None)}


def measure_keypoints(net: KeypointNet) -> dict:
    """Mean distance of landmarks, and of the visible joints, in sides of the frame."""
    drawn = held_out(250, 4)
    out = batched(compiled(net, lambda n, x: n(x.astype(jnp.float32) / 127.5 - 1)), drawn.images)
    side = drawn.images.shape[1]
    landmarks = np.linalg.norm(out.landmarks - drawn.landmarks / side, axis=-1).mean()
    joints = np.linalg.norm(out.keypoints - drawn.keypoints / side, axis=-1)[drawn.visibility]
    return {
        "landmark_error": _figure(landmarks, len(drawn), 0.03, at_most=True),
        "keypoint_error": _figure(joints.mean(), int(drawn.visibility.sum()), 0.03, at_most=True),
        "faces_found": _figure((out.present > 0).mean(), len(drawn), None),
    }


def measure_clip(clip: ClipScore, tower: CLIPVisionModel) -> dict:
    """The right one of 32 captions; and a person among 100 by one crop's image features."""
    drawn = held_out(320, 4)
    texts = whole_prompts(drawn)
    images, words = clip.image_features(drawn.images), clip.text_features(texts)
    scores = np.einsum("gid,gjd->gij", images.reshape(-1, 32, 64), words.reshape(-1, 32, 64))
    right = (scores.argmax(-1) == np.arange(32)).mean()

    size = tower.config["image_size"]
    embed = compiled(tower, lambda tower, crops: tower(crops).pooler_output)

    def features(drawn):
        pairs = zip(drawn.images, drawn.face_box, strict=True)
        return batched(
            embed, np.stack([clip_preprocess(square_face_crop(*p), size) for p in pairs])
        )

    gallery = held_out(GALLERY, 1, portrait=True)
    probes = held_out(GALLERY, 5, first=30_000, portrait=True)
    rate = rank1(features(probes), probes.identity, features(gallery), gallery.identity)["rank1"]
    return {
        "clip_right_of_32_captions": _figure(right, len(drawn), 0.90),
        "clip_rank1_of_100": _figure(rate, len(probes), 0.50),
    }


def measure_base(pipe: Pipeline, clip: ClipScore, out: Path, samples: int) -> dict:
    """Does the image show what the prompt names? CLIP judges among all scenes and all colours."""
    drawn = held_out(samples, 1, first=40_000, portrait=True)
    images = pipe(
        whole_prompts(drawn),
        num_inference_steps=30,
        guidance_scale=BASE_GUIDANCE,
        seed=0,
        output_type="np",
    ).images
    images = np.rint(np.asarray(images) * 255).astype(np.uint8)
    from PIL import Image

    Image.fromarray(people.contact_sheet(images[:64], 16)).save(out / "base_samples.png")
    figures = {}
    for name, aim, judge in (("scene", 0.9, scene_judge), ("clothes_colour", 0.8, colour_judge)):
        truth = drawn.attributes[name]
        judged = judge(clip, images, drawn) == truth
        real = judge(clip, drawn.images, drawn) == truth
        figures[f"base_{name}"] = {
            **_figure(judged.mean(), samples, aim),
            "judge_on_drawn_pictures": round(float(real.mean()), 4),
        }
    return figures


def measure_photomaker(assets: Path, clip: ClipScore) -> dict:
    """The shipped adapter on ten people whom no training has seen, each from one picture."""
    from persongen_jax.evaluation.people import Evaluation
    from persongen_jax.systems.open import open_system

    config = load_config("configs/mini/photomaker.py", {})
    config.start_from = str(assets / "photomaker-v1.safetensors")
    config.validate_in_train = config.validate_out_of_domain = ""
    config.validation_images = 3
    config.metrics = (*config.metrics, "cosine_true", "cosine_others")
    system: Any = open_system(config)
    result = Evaluation(system)(system.model, 0)["out_of_train"]
    metrics, images = result.row["metrics"], result.images
    figures = {}
    for name, aim in (
        ("rank1_10", 0.6),
        ("rank1_100", None),
        ("cosine_true", None),
        ("cosine_others", None),
        ("detection_rate", None),
        ("clip_t", None),
    ):
        figures[f"photomaker_{name}"] = {
            **_figure(metrics[name]["mean"], metrics[name]["n"], aim),
            "interval": [round(metrics[name][end], 4) for end in ("low", "high")],
        }
    people_count, _, each, *shape = images.shape
    truth = np.tile(np.repeat(PROMPT_SCENES, each), people_count)
    judged = scene_judge(clip, images.reshape(-1, *shape)) == truth
    return figures | {"photomaker_scene": _figure(judged.mean(), len(truth), 0.8)}


def scene_judge(
    clip: ClipScore, images: np.ndarray, drawn: people.People | None = None
) -> np.ndarray:
    """Names of scenes [n]: those whose phrases' mean text feature is nearest."""
    from data_pipeline.drawing.captions import BACKGROUND

    features = []
    for scene in people.SCENES:
        words = {"time": "", "he": "he", "him": "him"}
        texts = [
            phrase.format(side=side, other=other, **words)
            for phrase in BACKGROUND[scene]
            for side, other in (("left", "right"), ("right", "left"))
        ]
        features.append(clip.text_features(texts).mean(0))
    return _nearest(clip, images, np.stack(features), people.SCENES)


def colour_judge(clip: ClipScore, images: np.ndarray, drawn: people.People) -> np.ndarray:
    """Colours [n] of the clothes; the judge knows their kind and the scene."""
    images_features = clip.image_features(images)
    texts = [
        join_parts(background, body.replace(true, colour, 1))
        for background, body, true in zip(
            drawn.backgrounds, drawn.bodies, drawn.attributes["clothes_colour"], strict=True
        )
        for colour in people.COLOUR_NAMES
    ]
    words = clip.text_features(texts).reshape(len(images), len(people.COLOUR_NAMES), -1)
    scores = np.einsum("nd,ncd->nc", images_features, words)
    return np.array(people.COLOUR_NAMES)[scores.argmax(1)]


def _nearest(clip, images, features, names):
    return np.array(names)[(clip.image_features(images) @ features.T).argmax(1)]


def whole_prompts(drawn: people.People) -> list[str]:
    """The three captions as one, without the trigger word."""
    parts = zip(drawn.captions, drawn.backgrounds, drawn.bodies, strict=True)
    return [join_parts("".join(split_at_trigger(g)), b, c) for g, b, c in parts]


def _found(net):
    find = compiled(net, lambda net, x: net(x.astype(jnp.float32) / 127.5 - 1).landmarks)
    return lambda drawn: batched(find, drawn.images) * drawn.images.shape[1]


def _psnr(mean_squared) -> float:
    return (10 * np.log10(255**2 / mean_squared)).mean()


def _figure(value, samples: int, aim: float | None, at_most: bool = False) -> dict:
    figure = {"value": round(float(value), 4), "samples": samples}
    if aim is not None:
        figure |= {"aim": aim, "met": bool(value <= aim if at_most else value >= aim)}
    return figure


def measure(assets: Path, out: Path, samples: int) -> dict:
    """All figures, by name."""
    pipe = Pipeline.from_pretrained(assets / "sdxl")
    clip = ClipScore(assets / "clip")
    face_net = load_arcface(assets / "face_net" / "model.safetensors", input_size=40).model
    keypoint_net = load_keypoint_net(assets / "sdxl" / "face_detector")
    tower, _ = load_vision_tower(assets / "clip")
    adapter = {}
    if (assets / "photomaker-v1.safetensors").exists():
        adapter = measure_photomaker(assets, clip)
    return {
        **measure_vae(pipe.model.vae),
        **measure_face_net(face_net, keypoint_net),
        **measure_keypoints(keypoint_net),
        **measure_clip(clip, tower),
        **measure_base(pipe, clip, out, samples),
        **adapter,
    }


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m persongen_jax.miniature.figures", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder of the checkpoints")
    parser.add_argument("--out", type=Path, help="folder for figures.json (default: the assets)")
    parser.add_argument("--samples", type=int, default=300, help="of text-to-image (default: 300)")
    args = parser.parse_args(argv)
    out = args.out or args.assets
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    figures = measure(args.assets, out, args.samples)
    write_json(out / "figures.json", figures)
    print(json.dumps(figures, indent=1))
    print(f"{out / 'figures.json'}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
