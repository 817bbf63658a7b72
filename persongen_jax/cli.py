"""What all commands share: errors and warnings in one line each, and options with a config."""

import argparse
import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from data_pipeline.cli import command, plain_warnings
from persongen_jax.config import config_file


def parse_with_config(
    parser: argparse.ArgumentParser, argv: list[str] | None, example: str
) -> tuple[argparse.Namespace, ConfigDict]:
    """The parser's options and the config of ``--config FILE --config.KEY=VALUE …``.

    Args:
        argv: None: the process' own.
        example: a config that the command takes, for its help.

    Returns:
        (options, config). Of the options, ``config`` is the file and ``overrides`` what was
        changed, by key.

    Raises:
        ValueError: a key or value that the config does not take.
        OSError: no such file.
    """
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"such as {example}; --config.KEY=VALUE changes a key of it",
    )
    args, rest = parser.parse_known_args(argv)
    if args.config is None:
        parser.error(f"--config is missing; try --config {example}")
    found = config_file(args.config)
    file = re.sub(r"(?<=\.py):.*", "", found)  # x.py:digits is get_config("digits") of x.py
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such config; {example} is one")
    # Not absl's global flags: commands that import each other share option names.
    values, words = flags.FlagValues(), [parser.prog, f"--config={found}", *rest]
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=words)
    try:
        left = values(words)[1:]
    except flags.UnrecognizedFlagError as error:
        parser.error(str(error))
    except (AttributeError, KeyError) as error:
        said = error.args[0]
        while isinstance(said, Exception):  # the one that it was made of
            said = said.args[0]
        raise ValueError(f"the config has no such key: {' '.join(str(said).split())}") from error
    except (TypeError, flags.Error) as error:
        # Of a trace through the config's file, what the file says.
        raise ValueError(str(error).strip().rpartition("\nValueError: ")[2]) from error
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    args.overrides = config_flags.get_override_values(values["config"])
    return args, values.config


HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"
TUNABLES = "GLIBC_TUNABLES"


def restart_with_huge_pages() -> None:
    """On Linux without an accelerator: start this process anew, with its memory in huge pages.

    XLA's CPU programs request all their memory anew in every step; from glibc, in pages of 4 KiB, a
    fifth of the time of the miniature's training step goes into that. The C library reads its
    settings only when a process starts. Nothing happens if ``GLIBC_TUNABLES`` is set already, to
    whatever value.

    For ``if __name__ == "__main__"``, before JAX computes anything.
    """
    if TUNABLES in os.environ or platform.libc_ver()[0] != "glibc":
        return
    # What JAX would find is not asked of JAX itself: it must not look before it knows of other
    # hosts.
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    if os.environ.get("JAX_PLATFORMS") != "cpu" and (plugins or _is_installed("libtpu")):
        return
    try:
        if "[never]" in Path(HUGE_PAGES).read_text():
            return
    except OSError:
        return
    os.environ[TUNABLES] = "glibc.malloc.hugetlb=1"
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def add_mark_option(parser: argparse.ArgumentParser) -> None:
    """For commands that write generated images: pipeline/saving.py marks them, or not."""
    parser.add_argument(
        "--no-mark",
        action="store_true",
        help="write generated images without the invisible watermark and without the metadata that "
        "says what they are",
    )


__all__ = [
    "add_mark_option",
    "command",
    "parse_with_config",
    "plain_warnings",
    "restart_with_huge_pages",
]
