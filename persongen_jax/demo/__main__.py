"""A page in the browser that generates, compares and watches trainings.

    python -m persongen_jax.demo
    python -m persongen_jax.demo --base /path/to/sdxl --method-weights photomaker-v1.bin

Without options it opens the miniature with the adapter that ships. It is reachable from this
machine alone unless --host says otherwise. Extra ``demo``.
"""

import argparse
import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from persongen_jax.cli import add_mark_option, command, restart_with_huge_pages
from persongen_jax.demo.uploads import ended_by_signals, folder_of_uploads
from persongen_jax.weights.licences import add_terms_option

HOST, PORT = "127.0.0.1", 7860
MINIATURE_GUIDANCE = 2.0  # with more, its faces smear


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m persongen_jax.demo",
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--base", default="", help="diffusers-format SDXL directory, or a checkpoint's file")
    add("--run", nargs="+", default=[], metavar="DIR", help="trainings whose results are offered")
    add("--method-weights", nargs="+", default=[], metavar="FILE", help="adapter files")
    add("--image-encoder", default="", metavar="DIR", help="of the adapter files, as for generate")
    add("--clip", default="", metavar="DIR", help="as for generate")
    add("--method-controlnet", default="", metavar="DIR", help="as for generate")
    add("--lora", nargs="+", default=[], metavar="FILE[@WEIGHT]", help="loaded with every model")
    add("--controlnet", default="", metavar="DIR", help="follows skeletons, with every model")
    add("--pose-net", default="", metavar="NAME", help="as for generate; finds poses")
    add("--face-net", default="", metavar="FILE", help="judges Face-Sim, as config.face_net")
    add("--clip-judge", default="", metavar="DIR", help="judges CLIP-T, as config.clip")
    add("--safety-checker", default="", metavar="DIR", help="blackens what it finds unsafe")
    add("--root", nargs="+", type=Path, default=[Path("runs")], help="where runs and studies are")
    add("--out", type=Path, default=Path("outputs/demo"), help="folder for the images")
    add("--models", type=int, default=2, help="that are kept in memory")
    add("--steps", type=int, default=30, help="sampling steps, as the form starts with")
    add("--host", default=HOST, help="the address it listens at; 0.0.0.0 for all")
    add("--port", type=int, default=PORT, help="0 for any free one")
    add("--waiting", type=int, default=8, help="requests that may wait; others are refused")
    add("--largest-upload", default="20mb", help="of a photograph's file")
    add("--password-file", type=Path, metavar="FILE", help="lines USER:PASSWORD of who may enter")
    add_mark_option(parser)
    add_terms_option(add)
    return parser.parse_args(argv)


def read_passwords(file: Path) -> list[tuple[str, str]]:
    """(user, password) of each line.

    Raises:
        ValueError: a line without a colon; no line.
    """
    pairs = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            user, colon, password = line.strip().partition(":")
            if not (user and colon and password):
                raise ValueError(f"{file}, line {number}: write USER:PASSWORD")
            pairs.append((user, password))
    if not pairs:
        raise ValueError(f"{file}: nobody in it; write a line USER:PASSWORD")
    return pairs


def open_site(args: argparse.Namespace, uploads: Path) -> Any:
    """What the page needs, from the options; loads no model yet."""
    from persongen_jax.demo.judging import Judges
    from persongen_jax.demo.offers import Models, offers
    from persongen_jax.demo.sessions import Sessions
    from persongen_jax.demo.site import Site
    from persongen_jax.demo.strangers import draw_strangers
    from persongen_jax.pipeline.safety_checker import SafetyChecker
    from persongen_jax.pipeline.saving import ImageFolder

    networks = {"encoder": args.image_encoder, "clip": args.clip}
    networks["controlnet"] = args.method_controlnet
    found = offers(args.base, args.run, args.method_weights, args.lora, args.controlnet, **networks)
    checker = SafetyChecker(args.safety_checker) if args.safety_checker else None
    own = not (args.face_net or args.clip_judge) and not args.base and not args.run
    judges = Judges.of_miniature() if own else Judges(args.face_net, "auto", args.clip_judge)
    strangers = draw_strangers(uploads.resolve() / "strangers") if own else []
    return Site(
        Models(found, args.models),
        judges,
        ImageFolder(args.out, not args.no_mark),
        Sessions(uploads, strangers),
        tuple(root.resolve() for root in args.root),
        args.pose_net,
        checker,
        tuple(strangers),
        args.steps,
        args.waiting,
        MINIATURE_GUIDANCE if own else Site.guidance,
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    auth = read_passwords(args.password_file) if args.password_file else None
    args.out.mkdir(parents=True, exist_ok=True)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path.home() / ".cache" / "persongen_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs Gradio: pip install 'persongen_jax[demo]'")
    with ended_by_signals(), folder_of_uploads(args.out) as uploads:
        os.environ.update(
            GRADIO_TEMP_DIR=str(uploads),
            GRADIO_ANALYTICS_ENABLED="False",
            HF_HUB_DISABLE_TELEMETRY="1",
        )
        with contextlib.suppress(KeyboardInterrupt):
            serve(args, uploads, auth)


def serve(args: argparse.Namespace, uploads: Path, auth: list[tuple[str, str]] | None) -> None:
    """Until it is interrupted."""
    from persongen_jax.demo import page

    site = open_site(args, uploads)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    made = page.build(site)
    address = page.launch(
        made,
        host=args.host,
        port=args.port or None,
        largest=args.largest_upload,
        auth=auth,
    )
    print(f"{address}  (Ctrl-C ends it)", flush=True)
    made.block_thread()


if __name__ == "__main__":
    restart_with_huge_pages()
    main()
    sys.stdout.flush()
    os._exit(0)  # a usual exit aborts with a core dump if a thread is still computing an image
