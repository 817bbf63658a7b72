"""What all commands share: errors and warnings in one line each, and options with a config."""

import argparse
import re
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


def add_mark_option(parser: argparse.ArgumentParser) -> None:
    """For commands that write generated images: pipeline/saving.py marks them, or not."""
    parser.add_argument(
        "--no-mark",
        action="store_true",
        help="write generated images without the invisible watermark and without the metadata that "
        "says what they are",
    )


__all__ = ["add_mark_option", "command", "parse_with_config", "plain_warnings"]
