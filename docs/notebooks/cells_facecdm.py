"""FaceCDM: one photograph and a prompt to an image, and a short training."""

from shared import (
    ABOUT,
    CLIP_ROW,
    DEVICE,
    FACES_ROW,
    INSTALL,
    LICENCES,
    MOVENET_ROW,
    RECOGNISER_ROW,
    SHOW,
    TRAINING,
    code,
    markdown,
)

CELLS = [
    markdown(f"""
# FaceCDM: one photograph and a prompt to an image

FaceCDM reads a person in two ways: a face recogniser reads the face, CLIP the whole photograph.
SDXL's UNet attends to both next to the prompt, and a ControlNet follows a skeleton (a pose), if
one is given. It is trained in three stages: first what reads the photograph, then what reads the
face as well, then all of it with the ControlNet.
{ABOUT}"""),
    *INSTALL,
    markdown(
        LICENCES
        + CLIP_ROW
        + RECOGNISER_ROW
        + MOVENET_ROW
        + FACES_ROW
        + """
Weights of FaceCDM are not published: with `RUN = ""` this notebook trains them first, for `STEPS`
steps of each stage.
"""
    ),
    code("""
# ==================== Settings: the only cell to edit ====================
import os

MINIATURE = True  # False: real weights, from the paths below
STEPS = 100  # of training, in each stage
RUN = ""  # a run of stage 3 that was trained earlier; "": train one here, first
WORK = Path("work/facecdm")  # all that this notebook writes

if MINIATURE:
    import persongen_jax
    from data_pipeline.people import write_people

    os.environ["JAX_NUM_CPU_DEVICES"] = "2"  # on a CPU two devices share a batch faster than one
    ASSETS = Path(persongen_jax.__path__[0]) / "assets"
    CONFIGS = "configs/mini/facecdm"
    BASE = ASSETS / "sdxl"
    CLIP = ASSETS / "clip"
    RECOGNISER = ASSETS / "face_net" / "model.safetensors"
    POSE_NET = f"keypoints:{BASE / 'face_detector'}"
    PEOPLE = "people:in_train?identities=1000&pictures=12"
    drawn = write_people(WORK / "drawn", identities=2, pictures=4, split="out_of_train")
    PHOTOGRAPH, POSE_PHOTOGRAPH = drawn[6].image, drawn[3].image
    PROMPT = "a half-length photo of a person, mountains in the background"
    NEGATIVE = ""
    DTYPE, SIZE, BATCH, GUIDANCE = "float32", 64, 32, 4.0
else:
    CONFIGS = "configs/facecdm"
    BASE = "/path/to/sdxl"
    CLIP = "/path/to/clip-vit-large-patch14"
    RECOGNISER = "/path/to/glintr100.onnx"
    POSE_NET = "movenet:/path/to/movenet-lightning.json"
    PEOPLE = "/path/to/photographs"  # to train on: a folder for each person, see train.ipynb
    PHOTOGRAPH = "/path/to/her.jpg"
    POSE_PHOTOGRAPH = ""  # whose pose the image follows; "": none
    PROMPT = "a photo of a woman on a bridge"
    NEGATIVE = "lowres, blurry, bad anatomy, watermark"
    DTYPE, SIZE, BATCH, GUIDANCE = "bfloat16", 512, 8, 5.0
# =========================================================================
"""),
    *DEVICE,
    markdown("""
## Training, if there are no weights yet

Three runs, each from the one before. For stage 3 the photographs need the body's joints in the
manifest (`python -m data_pipeline.manifest FOLDER --pose movenet-lightning.json`); the drawn
people have them.

**What a short training gives.** On the miniature, after 100 steps of stage 1 alone, skin and hair
take the colours of one of two strangers and hardly change for the other; nobody's face is
recognisable. (Two photographs, looked at, not measured.) What as many steps of stages 2 and 3 add
has not been looked at: do not expect the pose to be followed. With real weights a hundred steps
change next to nothing; the configs train for 20,000 in each stage.
"""),
    TRAINING,
    code("""
def train_stage(stage, workdir, start_from):
    run_training(
        f"{CONFIGS}/stage{stage}.py",
        workdir,
        base=BASE,
        id_encoder=CLIP,
        face_encoder=RECOGNISER,
        data=PEOPLE,
        start_from=start_from,
        batch_size=BATCH,
        steps=STEPS,
        warmup_steps=STEPS // 10,
        loader="memory",
        tensorboard=False,
    )


run = RUN
if not RUN:
    for stage in (1, 2, 3):
        train_stage(stage, WORK / f"stage{stage}", start_from=run)
        run = WORK / f"stage{stage}"
"""),
    markdown("""
## One photograph

The photograph, the face that is found in it, and the skeleton of the person in the other
photograph.
"""),
    SHOW,
    code("""
from data_pipeline.faces.find import crop_face
from data_pipeline.pictures.reading import load_image
from persongen_jax.face_detectors import open_reference_detector
from persongen_jax.generate.pose import pose_image
from persongen_jax.pose_nets import open_pose_net

photograph = load_image(PHOTOGRAPH)
face = crop_face(photograph, PHOTOGRAPH, open_reference_detector(BASE))
show(photograph, face)
pose = None
if POSE_PHOTOGRAPH:
    pose = pose_image(POSE_PHOTOGRAPH, open_pose_net(POSE_NET), SIZE, SIZE)
    show(load_image(POSE_PHOTOGRAPH), load_image(pose))
"""),
    markdown("""
## Images of that person

The same noise with each part off and on; with both off it is what the base alone makes of the
prompt. Then with the pose as well.
"""),
    code("""
import jax.numpy as jnp

from persongen_jax.pipeline import Pipeline, save_images

pipe = Pipeline.from_pretrained(BASE, dtype=jnp.dtype(DTYPE))
pipe.load_method("facecdm", run)


def generate(name, pose=None, scales=None):
    images = pipe(
        PROMPT,
        NEGATIVE,
        references=[[face]],
        photographs=[[photograph]],
        pose=[pose] if pose else None,
        scales=scales,
        height=SIZE,
        width=SIZE,
        num_inference_steps=30,
        start_merge_step=-1,  # the person acts from the first step on
        guidance_scale=GUIDANCE,
        num_images_per_prompt=4,
        seed=1,
    ).images
    show(*save_images(images, WORK / "images" / name))


print(PROMPT)
for scale in ((0.0, 0.0), (0.8, 0.0), (0.0, 0.8), (0.8, 0.8)):
    scales = dict(zip(("image", "face"), scale, strict=True))
    print(scales)
    generate("facecdm", scales=scales)
"""),
    code("""
if pose is not None:
    generate("facecdm_pose", pose)
"""),
    markdown("""
A ControlNet of another kind (edges, depth) acts in addition:
`pipe.load_controlnet("/path/to/controlnet")`, then `control_image=IMAGE` in the call.

## A short training from weights of your own

With `RUN` set: stage 3 again, from the weights that were used above, and the same noise once more.
"""),
    code("""
if RUN:
    del pipe  # training needs its memory
    train_stage(3, WORK / "stage3_further", start_from=run)
    pipe = Pipeline.from_pretrained(BASE, dtype=jnp.dtype(DTYPE))
    pipe.load_method("facecdm", WORK / "stage3_further")
    generate("facecdm_further")
    if pose is not None:
        generate("facecdm_further_pose", pose)
"""),
]
