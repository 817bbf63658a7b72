"""Trains the miniature's networks and writes them as ordinary checkpoints; see the package."""

import argparse
import sys
from pathlib import Path

import jax

from persongen_jax.cli import command, restart_with_huge_pages
from persongen_jax.miniature.configs import CPU_DEVICES
from persongen_jax.miniature.stages import STAGES, run
from persongen_jax.parallel.distributed import unfinished_status
from persongen_jax.training.stopping import Stopped

ASSETS = Path(__file__).parent.parent / "assets"


@command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m persongen_jax.miniature",
        description="Trains VAE, CLIP, face and keypoint nets, and the base UNet on drawn people.",
    )
    parser.add_argument("--work", type=Path, default=Path("runs/miniature"), help="training state")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder for the checkpoints")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=STAGES,
        default=list(STAGES),
        metavar="STAGE",
        help=f"some of {', '.join(STAGES)}; write needs all the others to be finished",
    )
    args = parser.parse_args(argv)
    try:
        run(args.only, args.work, args.out)
    except Stopped:  # training has already printed where it stopped
        return unfinished_status()
    return 0


if __name__ == "__main__":
    restart_with_huge_pages()
    jax.config.update("jax_num_cpu_devices", CPU_DEVICES)
    sys.exit(main())
