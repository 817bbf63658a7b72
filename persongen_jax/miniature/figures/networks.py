"""What the networks do with drawn images: the VAE, and first nets beside their judges."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from data_pipeline.drawing import people
from data_pipeline.drawing.identities import GROUP
from data_pipeline.faces.align import align_faces
from data_pipeline.pictures.transforms import clip_preprocess, square_face_crop
from persongen_jax.metrics.clip_score import ClipScore
from persongen_jax.miniature.figures.samples import (
    batched,
    compiled,
    held_out,
    mean_of,
    share,
    whole_prompts,
)
from persongen_jax.miniature.systems.face_parts import parts_crop
from persongen_jax.models.encoders.clip import CLIPVisionModel
from persongen_jax.models.faces.iresnet import IResNet, normalise_faces
from persongen_jax.models.faces.keypoint_net import KeypointNet
from persongen_jax.models.sdxl.vae import AutoencoderKL

GALLERY = 100


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
        "vae_psnr_db": mean_of(_psnr(error.mean((1, 2, 3))), drawn.identity, bar=28.0),
        "vae_face_psnr_db": mean_of(_psnr(np.array(faces)), drawn.identity, bar=29.0, aim=31.0),
    }


def measure_face_net(net: IResNet, keypoint_net: KeypointNet, name: str = "face_net") -> dict:
    """Rank-1 of one image against one of each, with the true landmarks and with detected ones."""
    size = net.config["input_size"]
    embed = compiled(net, lambda net, crops: net(normalise_faces(crops)))

    def embeddings(drawn, landmarks):
        return batched(embed, align_faces(drawn.images, landmarks, size))

    gallery = held_out(GALLERY, 1, portrait=True)
    probes = held_out(GALLERY, 10, first=10_000, portrait=True)
    figures = {}
    for kind, points in (("", lambda d: d.landmarks), ("_by_keypoint_net", _found(keypoint_net))):
        right = first_rank(
            embeddings(probes, points(probes)),
            probes.identity,
            embeddings(gallery, points(gallery)),
            gallery.identity,
        )
        figures[f"{name}_rank1_of_100{kind}"] = share(right, probes.identity, bar=0.98)
    # Ten people who share everything but the inner face: rank-1 within the group.
    gallery = held_out(GALLERY, 1, split="look_alikes", portrait=True)
    probes = held_out(GALLERY, 5, first=20_000, split="look_alikes", portrait=True)
    right = first_rank_in_groups(
        embeddings(probes, probes.landmarks),
        probes.identity,
        embeddings(gallery, gallery.landmarks),
        gallery.identity,
    )
    group = np.repeat(np.arange(GALLERY // GROUP), len(right) * GROUP // GALLERY)
    return figures | {f"{name}_rank1_of_10_look_alikes": share(right, group)}


def first_rank(
    embeddings: np.ndarray, labels: np.ndarray, gallery: np.ndarray, names: np.ndarray
) -> np.ndarray:
    """[n] bool: whether the nearest of the gallery, by cosine, is the right one."""
    embeddings, gallery = (
        x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
        for x in (embeddings, gallery)
    )
    return np.asarray(names)[(embeddings @ gallery.T).argmax(-1)] == np.asarray(labels)


def first_rank_in_groups(
    embeddings: np.ndarray, labels: np.ndarray, gallery: np.ndarray, names: np.ndarray
) -> np.ndarray:
    """``first_rank`` among each one's own group: GROUP consecutive rows of the gallery.

    Everyone has the same number of rows, in the gallery's order.
    """
    groups = len(gallery) // GROUP
    parts = zip(
        *(np.split(np.asarray(x), groups) for x in (embeddings, labels, gallery, names)),
        strict=True,
    )
    return np.concatenate([first_rank(*part) for part in parts])


def measure_keypoints(net: KeypointNet, name: str = "") -> dict:
    """Mean distance of landmarks, and of the visible joints, in sides of the frame."""
    drawn = held_out(250, 4)
    out = batched(compiled(net, lambda n, x: n(x.astype(jnp.float32) / 127.5 - 1)), drawn.images)
    side = drawn.images.shape[1]
    landmarks = np.linalg.norm(out.landmarks - drawn.landmarks / side, axis=-1).mean(1)
    joints = np.linalg.norm(out.keypoints - drawn.keypoints / side, axis=-1)[drawn.visibility]
    owner = np.broadcast_to(np.asarray(drawn.identity)[:, None], drawn.visibility.shape)
    goal = {"bar": 0.03, "at_most": True}
    return {
        f"{name}landmark_error": mean_of(landmarks, drawn.identity, **goal),
        f"{name}keypoint_error": mean_of(joints, owner[drawn.visibility], **goal),
        f"{name}faces_found": share(out.present > 0, drawn.identity),
    }


def measure_clip(clip: ClipScore, name: str = "clip") -> dict:
    """The right one of 32 captions."""
    drawn = held_out(320, 4)
    images, words = clip.image_features(drawn.images), clip.text_features(whole_prompts(drawn))
    width = images.shape[-1]
    scores = np.einsum("gid,gjd->gij", images.reshape(-1, 32, width), words.reshape(-1, 32, width))
    right = scores.argmax(-1) == np.arange(32)
    return {f"{name}_right_of_32_captions": share(right.ravel(), drawn.identity, bar=0.90)}


def measure_image_tower(tower: CLIPVisionModel) -> dict:
    """A person among 100 by one crop's image features, which ID encoders read."""
    size = tower.config["image_size"]
    embed = compiled(tower, lambda tower, crops: tower(crops).pooler_output)

    def features(drawn):
        pairs = zip(drawn.images, drawn.face_box, strict=True)
        return batched(
            embed, np.stack([clip_preprocess(square_face_crop(*p), size) for p in pairs])
        )

    gallery = held_out(GALLERY, 1, portrait=True)
    probes = held_out(GALLERY, 5, first=30_000, portrait=True)
    right = first_rank(features(probes), probes.identity, features(gallery), gallery.identity)
    return {"clip_rank1_of_100": share(right, probes.identity, bar=0.50)}


def parts_judge(net: IResNet, keypoint_net: KeypointNet) -> Callable[[np.ndarray], np.ndarray]:
    """A function of images uint8 [n, s, s, 3] to whether each of people.PARTS is right, [n, 5]."""
    find = compiled(keypoint_net, lambda net, x: net(x.astype(jnp.float32) / 127.5 - 1).face_box)
    judge = compiled(net, lambda net, crops: net(normalise_faces(crops)))

    def judged(images):
        boxes = batched(find, images) * images.shape[1]
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 4)  # of an image without any face
        pairs = zip(images, boxes, strict=True)
        return batched(judge, np.stack([parts_crop(*pair) for pair in pairs])) > 0

    return judged


def measure_parts_judge(net: IResNet, keypoint_net: KeypointNet) -> dict:
    """How often the judge of inner faces is right about parts with and without a fault."""
    count = 500
    faults = people.Faults.draw(np.arange(count) + 1_000_000)
    drawn = held_out(count, 1, first=60_000, portrait=True, faults=faults)
    found, present = parts_judge(net, keypoint_net)(drawn.images), faults.present
    owner = np.broadcast_to(np.asarray(drawn.identity)[:, None], present.shape)
    figures = {}
    for name, which in (("whole", present), ("faulty", ~present)):
        right = (found == present)[which]
        figures[f"parts_judge_right_on_{name}_parts"] = share(right, owner[which])
    return figures


def _found(net):
    find = compiled(net, lambda net, x: net(x.astype(jnp.float32) / 127.5 - 1).landmarks)
    return lambda drawn: batched(find, drawn.images) * drawn.images.shape[1]


def _psnr(mean_squared) -> np.ndarray:
    return 10 * np.log10(255**2 / mean_squared)
