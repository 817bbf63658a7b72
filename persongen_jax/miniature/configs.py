"""A config for each of the miniature's trainings.

    python -m persongen_jax.train --config persongen_jax/miniature/configs.py:vae \\
        --workdir runs/miniature/vae

trains one of them; ``python -m persongen_jax.miniature`` trains all, in the order of their
dependencies. Muon brought the VAE's error to three quarters of Adam's in the first 50 steps, for a
sixth more time per step; for the other networks the two were not compared.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from persongen_jax.systems.open import system_class

SYSTEMS = "persongen_jax.miniature.systems"
CPU_DEVICES = 2  # two share the batch: the layers are too small for two cores each

OF_UNETS = {"drop_prob": 0.1, "min_snr_gamma": 5.0, "ema_decay": 0.999, "ema_warmup": True}
# By name, in an order that respects dependencies. ``rate`` is for matrices and kernels, which Muon
# updates, ``adam_rate`` for the rest; other keys are the config's own.
TRAININGS: dict[str, dict[str, Any]] = {
    "vae": dict(
        system="vae:Vae",
        seed=1,
        steps=4000,
        batch_size=32,
        rate=0.01,
        adam_rate=3e-3,
    ),
    "clip": dict(
        system="clip:Clip",
        seed=2,
        steps=1000,
        batch_size=64,
        rate=4e-3,
        adam_rate=2e-3,
        decay=0.02,
        faces=2,
    ),
    "faces": dict(
        system="clip:Faces",
        seed=6,
        steps=900,
        batch_size=32,
        rate=4e-3,
        adam_rate=2e-3,
        decay=0.01,
        faces=6,
    ),
    "face_net": dict(
        system="face_net:FaceNet",
        seed=3,
        steps=450,
        batch_size=128,
        rate=5e-3,
        adam_rate=3e-3,
        decay=1e-3,
    ),
    "keypoint_net": dict(
        system="keypoint_net:Keypoints",
        seed=4,
        steps=1000,
        batch_size=96,
        rate=5e-3,
        adam_rate=2e-3,
    ),
    "unet": dict(
        system="unet:UNet",
        seed=5,
        steps=3000,
        batch_size=64,
        rate=5e-3,
        adam_rate=2e-3,
        decay=0.01,
        face_weight=5.0,
        **OF_UNETS,
    ),
    "clip_judge": dict(
        system="judges:ClipJudge",
        seed=12,
        steps=1200,
        batch_size=64,
        rate=4e-3,
        adam_rate=2e-3,
        decay=0.02,
    ),
    "face_judge": dict(
        system="judges:FaceJudge",
        seed=13,
        steps=600,
        batch_size=128,
        rate=5e-3,
        adam_rate=3e-3,
        decay=1e-3,
    ),
    "keypoint_judge": dict(
        system="judges:KeypointJudge",
        seed=14,
        steps=1200,
        batch_size=96,
        rate=5e-3,
        adam_rate=2e-3,
    ),
    "parts_judge": dict(
        system="face_parts:FaceParts",
        seed=15,
        steps=800,
        batch_size=96,
        rate=5e-3,
        adam_rate=3e-3,
        decay=1e-3,
    ),
    "unet_longer": dict(
        system="unet:UNet",
        seed=105,
        go_on=True,
        steps=5000,
        batch_size=64,
        rate=4e-3,
        adam_rate=1.5e-3,
        decay=0.01,
        face_weight=5.0,
        **OF_UNETS,
    ),
}


def get_config(stage: str, work: str | Path = "runs/miniature") -> ConfigDict:
    """The config of a stage by its name, in the folder ``work``."""
    if stage not in TRAININGS:
        raise ValueError(f"miniature stage {stage!r}: there are {', '.join(TRAININGS)}")
    return _config(work, **TRAININGS[stage])


def _config(work, *, system: str, rate, adam_rate, decay=0.0, **keys):
    system = f"{SYSTEMS}.{system}"
    config = system_class(system).defaults()
    config.system, config.work = system, str(work)

    config.cpu_devices = CPU_DEVICES
    config.optimizer = "muon"
    config.optimizer_options = {
        "ns_steps": 4,
        "consistent_rms": 0.2,
        "weight_decay": decay,
        "adam_ratio": adam_rate / rate,
    }
    config.lr_model = rate
    config.lr_schedule, config.warmup_steps, config.clip_norm = "cosine", 50, 1.0

    config.log_every = 50
    config.checkpoint_every = 200
    config.lock()  # an unknown key is an error
    config.update(keys)
    return config.unlock()
