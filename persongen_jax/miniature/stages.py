"""The stages: which network depends on which, and what is written at the end."""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipeline.text_files import read_json, whole_lines
from persongen_jax.config import load_config
from persongen_jax.miniature import sizes
from persongen_jax.miniature.configs import TRAININGS, get_config
from persongen_jax.miniature.pool import open_pool, open_tokenizers
from persongen_jax.miniature.systems.base import open_network
from persongen_jax.miniature.unit_scale import to_unit_scale
from persongen_jax.models.sdxl.parts import StableDiffusionXL
from persongen_jax.train import train
from persongen_jax.training.stopping import Stopped
from persongen_jax.weights.formats.keypoint_net import save_keypoint_net
from persongen_jax.weights.formats.sdxl.loading import FILE_NAMES, SDXLBase, save_sdxl
from persongen_jax.weights.loader import cast_module
from persongen_jax.weights.saver import save_module, write_json

LONGER = "unet_longer"  # of what is written
TRAINED = tuple(stage for stage in TRAININGS if stage != LONGER)
STAGES = (*TRAINED, "write", LONGER, "photomaker")
NEEDS = {"faces": ("clip",), "unet": ("vae", "faces")}
JUDGES = ("clip_judge", "face_judge", "keypoint_judge", "parts_judge")
ADAPTER_STEPS = 2000
COSTS = "miniature.json"


class World:
    """All networks; each is trained, or its training resumed, on first access."""

    def __init__(self, work: Path):
        self.work = work
        self._networks = {}

    def network(self, stage: str) -> Any:
        """The model that a stage has trained; see its System. Trains the stages it depends on
        first.

        Raises:
            Stopped: a signal ended the training before its last step.
        """
        if stage not in self._networks:
            for needed in NEEDS.get(stage, ()):
                self.network(needed)
            if not train(get_config(stage, self.work), self.work / stage):
                raise Stopped
            self._networks[stage] = open_network(self.work, stage)
        return self._networks[stage]

    def costs(self) -> dict[str, dict]:
        """{"steps", "seconds"} of every stage."""
        return {stage: cost_of(self.work / stage) for stage in TRAINED}


def cost_of(workdir: Path) -> dict:
    """Steps of a run and the seconds that they took, without compiling and saving."""
    config = read_json(workdir / "config.json")
    seconds, before = 0.0, 0
    for line in whole_lines(workdir / "metrics.jsonl"):
        row = json.loads(line)
        steps, before = row["step"] - before, row["step"]
        seconds += steps * config["batch_size"] / row["images_per_second"]
    return {"steps": before, "seconds": round(seconds, 1)}


def run(stages: Collection[str], work: Path, out: Path) -> None:
    """Train the stages in ``stages``, in their order; "write" writes everything to ``out``."""
    world = World(work)
    for stage in STAGES:
        if stage in stages:
            if stage == "write":
                write(world, out)
            elif stage == LONGER:
                train_longer(work, out)
            elif stage == "photomaker":
                train_photomaker(work, out)
            else:
                world.network(stage)


def train_longer(work: Path, out: Path) -> None:
    """Train the UNet in ``out`` further, and write it in place of the old one."""
    config = get_config(LONGER, work)
    config.assets = str(out)
    if not train(config, work / LONGER):
        raise Stopped
    unet = open_network(work, LONGER).unet
    cast_module(unet, jnp.float16)
    save_module(unet, out / "sdxl" / "unet", sizes.unet_config(), file_name=FILE_NAMES["unet"])
    costs = read_json(out / COSTS)
    costs["trained"][LONGER] = cost_of(work / LONGER)
    write_json(out / COSTS, costs)


def train_photomaker(work: Path, out: Path) -> None:
    """configs/mini/photomaker.py for longer than the main job has time for, as a v1 file."""
    from persongen_jax.pipeline import Pipeline
    from persongen_jax.weights.formats.photomaker import save_photomaker

    config = load_config("configs/mini/photomaker.py", {})
    config.steps = config.validation_every = ADAPTER_STEPS
    config.base, config.id_encoder = str(out / "sdxl"), str(out / "clip")
    judges = out / "judges"
    config.clip = str(judges / "clip")
    config.face_net = str(judges / "face_net" / "model.safetensors")
    config.face_detector = f"keypoints:{judges / 'face_detector'}"
    if not train(config, work / "photomaker"):
        raise Stopped
    pipe = Pipeline.from_pretrained(config.base)
    pipe.load_method(None, work / "photomaker")
    save_photomaker(pipe.model, out / "photomaker-v1.safetensors")


def write(world: World, out: Path) -> None:
    """The checkpoints, and ``miniature.json`` with what they cost."""
    networks = {stage: world.network(stage) for stage in TRAINED}
    prompts, tokenizers = open_pool(world.work).prompts, open_tokenizers(world.work)
    model = networks["unet"]
    configs = {
        "unet": sizes.unet_config(),
        "vae": {**sizes.vae_config(), "scaling_factor": model.vae.config["scaling_factor"]},
        "text_encoder": sizes.text_config(0, len(tokenizers.tokenizer)),
        "text_encoder_2": sizes.text_config(1, len(tokenizers.tokenizer)),
    }
    towers = nnx.clone(model.text_encoder), nnx.clone(model.text_encoder_2)
    unet = nnx.clone(model.unet)
    ids = np.stack([tokenizers.encode(text) for text, *_ in prompts[:64]])
    to_unit_scale(towers, unet, ids)
    # Half precision costs no visible quality, and halves the largest file.
    cast_module(unet, jnp.float16)
    shipped = StableDiffusionXL(unet, model.vae, *towers)
    save_sdxl(SDXLBase(shipped, tokenizers, configs, sizes.SCHEDULER, {}, ""), out / "sdxl")
    save_keypoint_net(networks["keypoint_net"], out / "sdxl" / "face_detector")
    vocabulary = len(tokenizers.tokenizer)
    clip = sizes.clip_config(sizes.text_config(0, vocabulary), sizes.vision_config())
    _write_clip(networks["faces"], clip, tokenizers.tokenizer, out / "clip")
    _write_face_net(networks["face_net"].net, out / "face_net")
    judges = out / "judges"
    for name in JUDGES:  # half precision changes none of their answers by as much as a sample does
        networks[name] = nnx.clone(networks[name])
        cast_module(networks[name], jnp.float16)
    clip = sizes.clip_config(
        sizes.text_config(1, vocabulary, sizes.TEXT_JUDGE_LAYERS),
        sizes.vision_config(sizes.VISION_JUDGE),
    )
    _write_clip(networks["clip_judge"], clip, tokenizers.tokenizer_2, judges / "clip")
    _write_face_net(networks["face_judge"].net, judges / "face_net")
    _write_face_net(networks["parts_judge"], judges / "face_parts")
    save_keypoint_net(networks["keypoint_judge"], judges / "face_detector")
    write_json(
        out / COSTS,
        {"cores": os.cpu_count(), "trained": world.costs(), "jax": jax.__version__},
    )


class _WholeCLIP(nnx.Module):
    """Names its parts like transformers' CLIPModel."""

    def __init__(self, towers):
        text, vision = nnx.clone(towers.text_encoder), nnx.clone(towers.vision)
        self.text_projection, self.visual_projection = (
            text.text_projection,
            vision.visual_projection,
        )
        text.text_projection = vision.visual_projection = nnx.data(None)
        self.text_model, self.vision_model = text, vision
        self.logit_scale = nnx.Param(towers.logit_scale.get_value())


def _write_clip(towers, config: dict, tokenizer, folder: Path):
    save_module(_WholeCLIP(towers), folder, config, file_name="model.safetensors")
    tokenizer.save_pretrained(str(folder))


def _write_face_net(net, folder: Path):
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in net.config.items()}
    config["licence"] = "Apache-2.0 (trained by this project on drawn people)"
    save_module(net, folder, config, file_name="model.safetensors")
