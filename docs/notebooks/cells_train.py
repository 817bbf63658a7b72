"""Training on a folder of one's own photographs."""

from shared import (
    ABOUT,
    CLIP_ROW,
    DEVICE,
    FACES_ROW,
    INSTALL,
    LICENCES,
    PHOTOMAKER_ROW,
    SHOW,
    TRAINING,
    code,
    markdown,
)

CELLS = [
    markdown(f"""
# Training on a folder of photographs

PhotoMaker learns from photographs of many people, at least two of each, and can then be used for
people whom it has not seen.
{ABOUT}"""),
    *INSTALL,
    markdown(LICENCES + CLIP_ROW + PHOTOMAKER_ROW + FACES_ROW),
    code("""
# ==================== Settings: the only cell to edit ====================
import os

MINIATURE = True  # False: real weights, from the paths below
STEPS = 100  # of training
WORK = Path("work/train")  # all that this notebook writes

if MINIATURE:
    import persongen_jax
    from data_pipeline.people import write_people

    os.environ["JAX_NUM_CPU_DEVICES"] = "2"  # on a CPU two devices share a batch faster than one
    ASSETS = Path(persongen_jax.__path__[0]) / "assets"
    CONFIG = "configs/mini/photomaker.py"
    BASE = ASSETS / "sdxl"
    CLIP = ASSETS / "clip"
    START_FROM = ASSETS / "photomaker-v1.safetensors"  # "": from the beginning
    PHOTOGRAPHS = WORK / "photographs"
    write_people(PHOTOGRAPHS, identities=40, pictures=6, split="in_train")
    drawn = write_people(WORK / "drawn", identities=2, pictures=4, split="out_of_train")
    STRANGERS = [drawn[2].image, drawn[6].image]
    PROMPT = "a photo of a person img looking at the camera"
    NEGATIVE = ""
    DTYPE, SIZE, BATCH, GUIDANCE, START = "float32", 64, 32, 4.0, 2
else:
    CONFIG = "configs/base.py"
    BASE = "/path/to/sdxl"
    CLIP = "/path/to/clip-vit-large-patch14"
    START_FROM = "/path/to/photomaker-v1.bin"  # "": from the beginning
    PHOTOGRAPHS = Path("/path/to/photographs")  # ann/1.jpg, ann/2.jpg, bob/1.jpg, ...
    STRANGERS = []  # photographs of people who are not among them
    PROMPT = "a photo of a woman img on a bridge"
    NEGATIVE = "lowres, blurry, bad anatomy, watermark"
    DTYPE, SIZE, BATCH, GUIDANCE, START = "bfloat16", 512, 8, 5.0, 10
# =========================================================================
"""),
    *DEVICE,
    markdown("""
## The manifest

A folder for each person is enough. The first time, faces are found, captions proposed, and what
cannot be used is named; the result is `manifest.jsonl`, which you may edit. (The drawn people
come with theirs.) Then the file is checked.
"""),
    SHOW,
    code("""
from data_pipeline import manifest
from data_pipeline.pictures.reading import load_image
from data_pipeline.records.manifest import read_manifest

if not (PHOTOGRAPHS / "manifest.jsonl").exists():
    manifest.main([str(PHOTOGRAPHS)])
manifest.main([str(PHOTOGRAPHS), "--check"])
records = read_manifest(PHOTOGRAPHS)
for record in records[:6]:
    print(record.identity, "|", record.caption)
show(*[load_image(record.image) for record in records[:6]])
"""),
    markdown("""
## Training

On all devices. An interrupted cell continues where it was when it is run again. For other settings
choose another `WORK`, or delete the run's folder.

**What a short training gives.** Little: it starts from weights that know how to read a face, and
the config trains for 20,000 steps with real weights. The images before and after show what has
changed. If memory runs out, choose a smaller `BATCH`, or add `remat=True` below, which computes
activations twice instead of keeping them.
"""),
    TRAINING,
    code("""
RUN = WORK / "run"
run_training(
    CONFIG,
    RUN,
    base=BASE,
    id_encoder=CLIP,
    data=PHOTOGRAPHS,
    start_from=START_FROM,
    batch_size=BATCH,
    steps=STEPS,
    warmup_steps=STEPS // 10,
    log_every=max(1, STEPS // 20),
    loader="memory",
    tensorboard=False,
)
"""),
    markdown("""
The loss says little about a person: most of it is noise that nobody can predict. Look at the images
below instead, and measure them (`python -m persongen_jax.evaluate --run RUN`).
"""),
    code("""
import json

import matplotlib.pyplot as plt

rows = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
plt.figure(figsize=(6, 2.5))
plt.plot([row["step"] for row in rows], [row["loss"] for row in rows])
plt.xlabel("step")
plt.ylabel("loss")
plt.show()
"""),
    markdown("""
## Images, before and after

Of somebody whom this training has seen, and of people whom it has not: the photograph and the
face in it, then images with the weights that the training started from, then the same noise with
its own.
"""),
    code("""
import jax.numpy as jnp

from data_pipeline.faces.find import crop_face
from persongen_jax.face_detectors import open_reference_detector
from persongen_jax.pipeline import Pipeline, save_images

detector = open_reference_detector(BASE)
photographs = [records[0].image, *STRANGERS]
faces = [crop_face(each, each, detector) for each in photographs]
pipe = Pipeline.from_pretrained(BASE, dtype=jnp.dtype(DTYPE))
rows = [[] for _ in photographs]  # of files, a list for each person
for name, weights in (("before", START_FROM), ("after", RUN)):
    if not weights:
        continue
    pipe.load_method("photomaker", weights)
    for row, face in zip(rows, faces, strict=True):
        images = pipe(
            PROMPT,
            NEGATIVE,
            references=[[face]],
            height=SIZE,
            width=SIZE,
            num_inference_steps=30,
            guidance_scale=GUIDANCE,
            start_merge_step=START,
            num_images_per_prompt=4,
            seed=1,
        ).images
        row.append(save_images(images, WORK / "images" / name))
for photograph, face, row in zip(photographs, faces, rows, strict=True):
    show(load_image(photograph), face)
    for files in row:
        show(*files)
"""),
]
