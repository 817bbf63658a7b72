"""One to four photographs and prompts to images: PhotoMaker, a background prompt, IP-Adapter."""

from shared import (
    ABOUT,
    DEVICE,
    FACES_ROW,
    INSTALL,
    IP_ADAPTER_ROW,
    LICENCES,
    PHOTOMAKER_ROW,
    SHOW,
    code,
    markdown,
)

CELLS = [
    markdown(f"""
# One to four photographs and prompts to images

PhotoMaker writes the person into the prompt: `img` after the class word ("a woman img on a bench")
marks where. A method of the thesis also reads the background from a prompt of its own. IP-Adapter
reads the person next to the prompt instead.
{ABOUT}"""),
    *INSTALL,
    markdown(LICENCES + PHOTOMAKER_ROW + IP_ADAPTER_ROW + FACES_ROW),
    code("""
# ==================== Settings: the only cell to edit ====================
import os

MINIATURE = True  # False: real weights, from the paths below
WORK = Path("work/generate")  # all that this notebook writes

if MINIATURE:
    import persongen_jax
    from data_pipeline.people import write_people

    os.environ["JAX_NUM_CPU_DEVICES"] = "2"  # on a CPU two devices share a batch faster than one
    ASSETS = Path(persongen_jax.__path__[0]) / "assets"
    BASE = ASSETS / "sdxl"
    WEIGHTS = ASSETS / "photomaker-v1.safetensors"
    IP_ADAPTER, IP_ENCODER = "", ""  # the miniature has none
    drawn = write_people(WORK / "drawn", identities=1, pictures=8, split="out_of_train")
    PHOTOGRAPHS = [drawn[i].image for i in (2, 5, 6, 7)]
    PROMPTS = ["a photo of a person img in a city", "a photo of a smiling person img in a red suit"]
    BACKGROUND = "a snowy night with the moon to the left"
    NEGATIVE = ""
    DTYPE, SIZE, STEPS, GUIDANCE, START = "float32", 64, 30, 4.0, 3
else:
    BASE = "/path/to/sdxl"
    WEIGHTS = "/path/to/photomaker-v1.bin"  # or a run of configs/photomaker_bg.py
    IP_ADAPTER = ""  # such as /path/to/ip-adapter-plus_sdxl_vit-h.safetensors; "": left out
    IP_ENCODER = ""  # the folder of its image encoder
    PHOTOGRAPHS = ["/path/to/her_1.jpg", "/path/to/her_2.jpg"]  # one to four of one person
    PROMPTS = ["a photo of a woman img in a space suit", "a painting of a woman img in a garden"]
    BACKGROUND = "a snowy night with the moon to the left"
    NEGATIVE = "lowres, blurry, bad anatomy, watermark"
    DTYPE, SIZE, STEPS, GUIDANCE, START = "bfloat16", 1024, 50, 5.0, 10
# =========================================================================
"""),
    *DEVICE,
    markdown("""
## The photographs

In each the largest face is found; a square around it is what the methods read.
"""),
    SHOW,
    code("""
from data_pipeline.faces.find import crop_face
from data_pipeline.pictures.reading import load_image
from persongen_jax.face_detectors import open_reference_detector

detector = open_reference_detector(BASE)
faces = [crop_face(photograph, photograph, detector) for photograph in PHOTOGRAPHS]
show(*map(load_image, PHOTOGRAPHS))
show(*faces)
"""),
    markdown("""
## PhotoMaker

The method `photomaker_bg` is PhotoMaker with additional attention layers, which read a prompt for
the background. Here their strength is 0: what remains is PhotoMaker. Two images of each prompt,
from one photograph, then from all of them and the same noise. The person acts from step `START`
on; before it the prompt alone decides what the image shows.
"""),
    code("""
import jax.numpy as jnp

from persongen_jax.pipeline import Pipeline, save_images

pipe = Pipeline.from_pretrained(BASE, dtype=jnp.dtype(DTYPE))


def generate(name, references, **options):
    \"\"\"Two images of each prompt, saved in a folder of this name and shown.\"\"\"
    images = pipe(
        PROMPTS,
        NEGATIVE,
        references=[references] * len(PROMPTS),
        height=SIZE,
        width=SIZE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        num_images_per_prompt=2,
        seed=1,
        **{"start_merge_step": START, **options},
    ).images
    show(*save_images(images, WORK / "images" / name))


print(*PROMPTS, sep="\\n")
pipe.load_method("photomaker_bg", WEIGHTS)
generate("one_photograph", faces[:1], scales={"background": 0.0})
generate("all_photographs", faces, scales={"background": 0.0})
"""),
    markdown("""
## How strongly the person acts

`scales` has a factor for each part that a method adds: `identity` for the person in the prompt,
`lora` for PhotoMaker's LoRA. With all of them at 0 the images are what the base alone makes of
this noise. A factor may hold for a range of the steps, from 0 (the first) to 1 (the last).
"""),
    code("""
for strength in (0.0, 0.5, [(0.5, 1.0, 0.0)]):
    print("identity and lora:", strength)
    scales = {"identity": strength, "lora": strength, "background": 0.0}
    generate("scales", faces, scales=scales)
"""),
    markdown("""
## A prompt for the background

From a PhotoMaker file the layers that read it start as copies of SDXL's own: a background is
followed at once, what a training of the method adds is missing.
"""),
    code("""
for strength in (1.0, 0.3):
    print(f"background: {strength}: {BACKGROUND}")
    generate("background", faces, background=BACKGROUND, scales={"background": strength})
"""),
    markdown("""
## IP-Adapter

It reads the person by attention layers next to the prompt's, and needs no `img`.
"""),
    code("""
if IP_ADAPTER:
    pipe.load_method("ip_adapter", IP_ADAPTER, encoder=IP_ENCODER)
    generate("ip_adapter", faces, start_merge_step=-1, scales={"identity": 0.6})
else:
    print("IP_ADAPTER is not set: no images here")
"""),
]
