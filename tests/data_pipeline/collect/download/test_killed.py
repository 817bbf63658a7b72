"""A download that is killed and started again writes what it would have written."""

import csv
import signal
import subprocess
import sys
import time

from data_pipeline.collect.download.__main__ import main
from tests.data_pipeline.collect.download.conftest import TIME, files_of
from tests.helpers.bad_server import BadServer

COUNT = 24


def test_killed_and_started_again(tmp_path, capsys):
    with BadServer(delay=0.1) as server:
        with open(tmp_path / "rows.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["identity", "url"])
            paths = [f"/ok/{i}.jpg" for i in range(COUNT)] + ["/status/404"]
            table.writerows(["ann", server.url(path)] for path in paths)
        options = ["--contact", "tests@example.org", "--allow", server.place, "--interval", "0.01"]
        options += ["--threads", "4", "--decoders", "1"]
        options += ["--fixed-time", TIME, str(tmp_path / "rows.csv")]

        command = [sys.executable, "-m", "data_pipeline.collect.download", *options]
        killed = subprocess.Popen([*command, "--work", str(tmp_path / "killed")])
        state, until = tmp_path / "killed" / "state.jsonl", time.monotonic() + 120
        while time.monotonic() < until:
            if state.exists() and state.read_bytes().count(b"\n") >= COUNT // 4:
                break
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        done = state.read_bytes().count(b"\n")
        assert COUNT // 4 <= done < COUNT

        server.delay = 0
        server.asked.clear()
        main([*options, "--work", str(tmp_path / "killed")])
        assert len(server.asked) == COUNT + 1 - done + 1  # what was missing, and robots.txt
        main([*options, "--work", str(tmp_path / "whole")])
    said = capsys.readouterr().out
    assert f"{COUNT} of {COUNT + 1} rows have a picture" in said and "status: 1" in said
    files = files_of(tmp_path / "whole")
    assert len(files) == COUNT + 3 and files_of(tmp_path / "killed") == files
