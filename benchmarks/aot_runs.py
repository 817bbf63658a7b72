"""Compiles everything shown in docs/aot.md, run by run, into benchmarks/results/aot.json.

    python -m benchmarks.aot_runs            # the missing ones, in this order
    python -m benchmarks.aot_runs --list
    python -m benchmarks.aot_tables          # then: the tables of docs/aot.md

Each run is a separate process, because its peak memory is one of the figures. They take many
minutes each; an interrupted one starts again, finished ones are kept.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results/aot.json"
YARDSTICK = "benchmarks.aot_yardstick"
STEP = ("persongen_jax.aot", "--config", "configs/photomaker_bg.py")
# BoLID, whose losses' networks need not be there. Captions are read by EVA02-CLIP-L's published
# sizes; joints by a KeypointNet of its usual sizes in place of MoveNet, whose graph is in its file.
BOLID = ("persongen_jax.aot", "--config", "configs/bolid.py", "--config.loss_pose_net=keypoints:-")
BOLID += ("--config.loss_clip=-", "--config.face_encoder=-", "--cached")
# Trained weights and Adam's moments are sharded: whole, they are a third of a v5e's memory.
DIVIDED = "--config.fsdp={}"

# On the smaller chips the encoders' 2.4 GiB leave room for another image.
OFFLOADED = "--config.offload_encoders=True"
ON_V5E = ("--topology", "v5e:4x4", DIVIDED.format(16), OFFLOADED, "--cached")
ON_V6E = ("--topology", "v6e:4x4", OFFLOADED, "--cached")

# A ControlNet as the second network, all of it trained.
SECOND = ("persongen_jax.aot", "--config", "configs/facecdm/stage3.py", OFFLOADED, "--cached")

# LoRA on one person at 1024 pixels on one chip: a base in bfloat16, and in 8 bits.
ON_ONE = ("persongen_jax.aot", "--config", "configs/lora.py", "--config.token=ohwx", OFFLOADED)
ON_ONE += ("--cached", "--per_chip_batch", "1", "--topology", "v5e:1x1")

RUNS = (
    (YARDSTICK, "--topology", "v5p:2x2x1"),
    (YARDSTICK, "--topology", "v5e:2x2"),
    (YARDSTICK, "--topology", "v5e:2x2", "--remat"),
    # Where a larger batch stops paying off. A full chip takes longer: 12 to 45 minutes each.
    *(
        (*STEP, "--topology", "v5p:4x4x4", "--cached", "--per_chip_batch", n)
        for n in ("40", "53", "56", "59", "80")
    ),
    (*STEP, "--topology", "v5p:4x4x4", OFFLOADED, "--cached", "--per_chip_batch", "128"),
    *((*STEP, *ON_V5E, "--per_chip_batch", n) for n in ("4", "5", "6", "8")),
    *((*STEP, *ON_V6E, "--per_chip_batch", n) for n in ("8", "12", "13", "16")),
    # From 4 chips to 256, at one batch per chip.
    *(
        (*STEP, "--topology", topology, DIVIDED.format(4), "--cached", "--per_chip_batch", "2")
        for topology in ("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16")
    ),
    # Losses on decoded images: without, with, and decoded at half the side. On a v5e there is no
    # room for the encoders beside them (17.8 GiB).
    *(
        (*BOLID, "--topology", topology, DIVIDED.format(4), "--per_chip_batch", "1", *own)
        for topology, own in (
            ("v5p:2x2x1", ("--config.losses={}",)),
            ("v5p:2x2x1", ()),
            ("v5p:2x2x1", ("--config.losses_downscale=2",)),
            ("v5e:4x4", ("--config.losses={}",)),
            ("v5e:4x4", (OFFLOADED,)),
            ("v5e:4x4", ("--config.losses_downscale=2", OFFLOADED)),
        )
    ),
    # The encoders' share of a step without a cache.
    (*STEP, "--topology", "v5p:4x4x4", "--what", "encode", "--per_chip_batch", "40"),
    ("persongen_jax.aot", "--config", "configs/base.py", "--topology", "v5e:4x4")
    + ("--what", "sample", "--config.size=1024", "--per_chip_batch", "1"),
    (*SECOND, "--per_chip_batch", "8", "--topology", "v5p:4x4x4"),
    *(
        (*SECOND, DIVIDED.format(16), "--per_chip_batch", n, "--topology", "v5e:4x4")
        for n in ("2", "1")
    ),
    *((*ON_ONE, "--config.remat=True", *own) for own in ((), ("--config.quantize=int8",))),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    if parser.parse_args().list:
        print("\n".join(f"python -m {' '.join(run)}" for run in RUNS))
        return
    for run in RUNS:
        command = " ".join(run)
        rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
        if any(row.get("command") == command for row in rows):
            continue
        print(f"python -m {command}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            one = Path(folder) / "run.json"
            done = subprocess.run([sys.executable, "-m", *run, "--json", str(one)])
            if done.returncode:
                print(f"it ended with {done.returncode}; continuing with the others", flush=True)
                continue
            (row,) = json.loads(one.read_text())
        RESULTS.write_text(json.dumps([*rows, {**row, "command": command}], indent=1) + "\n")


if __name__ == "__main__":
    main()
