"""The folder of uploads goes with the page, however that ends."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from persongen_jax.demo.uploads import ended_by_signals, folder_of_uploads


def left(out):
    return list(out.glob(".uploads-*"))


def test_it_is_deleted_at_the_end_and_others_stay(tmp_path):
    with folder_of_uploads(tmp_path) as first:
        (first / "me.png").write_bytes(b"x")
        with folder_of_uploads(tmp_path) as second:
            assert second != first and len(left(tmp_path)) == 2
        assert (first / "me.png").exists()
    assert left(tmp_path) == []


def test_those_of_killed_pages_are_deleted_at_the_start(tmp_path):
    killed = tmp_path / ".uploads-killed"
    (killed / "files" / "a").mkdir(parents=True)
    (killed / "files" / "a" / "me.png").write_bytes(b"x")
    (killed / "run.lock").write_text("")
    other = tmp_path / "image.png"
    other.write_bytes(b"x")
    with folder_of_uploads(tmp_path) as own:
        assert left(tmp_path) == [own.parent]
    assert other.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_deletes_it(tmp_path, number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), ended_by_signals(), folder_of_uploads(tmp_path):
        os.kill(os.getpid(), number)
        time.sleep(10)
    assert left(tmp_path) == [] and signal.getsignal(number) == before


@pytest.mark.slow
def test_the_command_says_where_it_is_and_ends_by_sigterm(tmp_path):
    pytest.importorskip("gradio")
    import httpx

    command = [sys.executable, "-m", "persongen_jax.demo", "--port", "0", "--out", str(tmp_path)]
    page = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = re.match(r"(http://127.0.0.1:(\d+))/? ", page.stdout.readline())
        assert address and int(address[2]) > 0
        assert httpx.get(f"{address[1]}/config").is_success  # it is served when it is printed
        with open(__file__, "rb") as photograph:
            sent = httpx.post(f"{address[1]}/gradio_api/upload", files={"files": photograph})
        assert [file for file in sent.json() if os.path.isfile(file) and str(tmp_path) in file]
        page.terminate()
        page.wait(timeout=30)
    finally:
        page.kill()
        page.wait()
    assert left(tmp_path) == [] and page.returncode == 0
