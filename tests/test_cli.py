"""Commands: options with a config among them, one line for known errors, and the exit status."""

import argparse
import os
import platform
import sys

import pytest

from persongen_jax import cli
from persongen_jax.cli import command, parse_with_config, restart_with_huge_pages

FILE = "configs/mini/photomaker.py"


@command
def example(argv):
    parser = argparse.ArgumentParser(prog="example", allow_abbrev=False)
    parser.add_argument("--number", type=int, default=1)
    parser.add_argument("--dry_run", action="store_true")
    return parse_with_config(parser, argv, FILE)


def test_options_and_overrides_in_any_order():
    words = ["--noconfig.tensorboard", "--number", "3", f"--config={FILE}"]
    args, config = example([*words, "--config.batch_size", "2", "--dry_run"])
    assert (args.config, args.number, args.dry_run) == (FILE, 3, True)
    assert config.batch_size == 2 and config.tensorboard is False
    assert args.overrides == {"batch_size": 2, "tensorboard": False}
    _, config = example(["--config", FILE, "--config.base=a folder with blanks"])
    assert config.base == "a folder with blanks"


def test_what_stands_after_the_files_colon_goes_to_get_config():
    args, config = example(["--config", "configs/attributes/classifier.py:mnist"])
    assert args.config.endswith("classifier.py:mnist") and config.data == "mnist"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "configs/none.py"], "configs/none.py: no such config"),
        (["--config", FILE, "--config.batch_sizes=2"], "no such key: 'batch_sizes' Did you mean"),
        (["--config", FILE, "--config.batch_size=x"], "--config.batch_size=x: invalid literal"),
        (["--config", "configs/attributes/classifier.py:hats"], "classifier.py:hats: there are"),
    ],
)
def test_a_faulty_config_is_one_line(words, said):
    with pytest.raises(SystemExit) as ended:
        example(words)
    text = ended.value.code  # Python prints it on stderr and ends with status 1
    assert text.startswith("error: ") and said in text and "\n" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], f"--config is missing; try --config {FILE}"),
        (["--config", FILE, "--numbers=2"], "Unknown command line flag 'numbers'"),
        (["--config", FILE, "--number=x"], "invalid int value: 'x'"),
        (["--config", FILE, "more"], "unrecognized arguments: more"),
    ],
)
def test_faulty_usage_ends_with_status_2(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        example(words)
    assert ended.value.code == 2
    assert f"example: error: {said}" in capsys.readouterr().err.replace("argument --number: ", "")


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, ModuleNotFoundError])
def test_known_errors_are_one_line_and_others_keep_their_trace(kind):
    @command
    def fail(error):
        raise error

    with pytest.raises(SystemExit, match="^error: the remedy$"):
        fail(kind("the remedy"))
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())


@pytest.mark.parametrize(
    ("pages", "platforms", "tunables", "restarts"),
    [
        ("always [madvise] never", "cpu", None, True),
        ("always madvise [never]", "cpu", None, False),  # the kernel has none
        ("[always] madvise never", "cuda", None, False),
        ("[always] madvise never", "cpu", "glibc.malloc.check=1", False),  # the user's own
    ],
)
def test_a_command_restarts_once_with_huge_pages(
    pages, platforms, tunables, restarts, tmp_path, monkeypatch
):
    (tmp_path / "enabled").write_text(pages)
    monkeypatch.setattr(cli, "HUGE_PAGES", str(tmp_path / "enabled"))
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    # As if an accelerator's plugin were installed: what JAX may use says whether it matters.
    monkeypatch.setattr(cli.importlib.metadata, "entry_points", lambda group: ["a plugin"])
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.delenv(cli.TUNABLES, raising=False)
    if tunables:
        monkeypatch.setenv(cli.TUNABLES, tunables)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "persongen_jax.train", "--x"])
    started = []
    monkeypatch.setattr(os, "execv", lambda *call: started.append(call))
    restart_with_huge_pages()
    restart_with_huge_pages()  # in the new process
    wanted = (sys.executable, [sys.executable, "-m", "persongen_jax.train", "--x"])
    assert started == ([wanted] if restarts else [])
