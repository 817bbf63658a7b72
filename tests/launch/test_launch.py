"""The launch scripts with --dry-run, and the commands that they pass to stand-ins of the tools."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "launch"
TRAINING = ["--config", "configs/photomaker_bg.py", "--workdir", "/shared/run"]
TRAINING += ['--config.validation_prompts=it\'s a "file".json']
OPTIONS = {
    "tpu_pod.sh": [
        *("--name", "people", "--project", "mine", "--zone", "us-west4-a"),
        *("--type", "v5litepod-16", "--runtime", "v2-alpha-tpuv5-lite"),
    ],
    "slurm.sh": ["--nodes", "4", "--gpus-per-node", "8"],
    "kubernetes.sh": [
        *("--name", "people", "--image", "registry/people:1", "--hosts", "4"),
        *("--devices", "8", "--claim", "disk"),
    ],
}


def launch(script, *options, training=TRAINING, tools=None):
    environment = dict(os.environ)
    if tools:
        environment["PATH"] = f"{tools}:{environment['PATH']}"
    command = ["bash", LAUNCH / script, *options, "--", *training]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def dry(script, *options):
    done = launch(script, *OPTIONS[script], *options, "--dry-run")
    assert done.returncode == 0, done.stderr
    return done.stdout


def words(text):
    """Split a shell line like the shell does."""
    code = 'for word in "$@"; do printf "%s\\0" "$word"; done'
    command = ["bash", "-c", f"set -- {text}\n{code}"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return out.split("\0")[:-1]


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.glob("*.sh")))
def test_scripts_are_linted(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if shellcheck := shutil.which("shellcheck", path=path):
        found = subprocess.run([shellcheck, LAUNCH / script], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout


def test_tpu_pod_commands():
    lines = [line[2:] for line in dry("tpu_pod.sh", "--spot").splitlines() if line[0] == "+"]
    create, copy, train, delete = map(words, lines)
    place = ["--project", "mine", "--zone", "us-west4-a"]
    queue = ["gcloud", "compute", "tpus", "queued-resources"]
    assert create == [
        *(*queue, "create", "people", "--node-id", "people", *place),
        *("--accelerator-type", "v5litepod-16", "--runtime-version", "v2-alpha-tpuv5-lite"),
        "--spot",
    ]
    vm = ["gcloud", "compute", "tpus", "tpu-vm"]
    assert copy[:5] == [*vm, "scp"]
    assert copy[6:] == ["people:persongen_jax.tar.gz", *place, "--worker=all"]
    assert train[:-1] == [*vm, "ssh", "people", *place, "--worker=all", "--command"]
    steps = train[-1].split(" && ")
    assert words(steps[-1]) == [
        *("PERSONGEN_UNFINISHED_STATUS=75", "exec", ".venv/bin/python"),
        *("-m", "persongen_jax.train", *TRAINING),
    ]
    assert delete == [*queue, "delete", "people", *place, "--force", "--quiet"]


def tpu_pod(folder, **commands):
    """The script with stand-ins for gcloud and sleep: (exit status, the calls except "describe").

    ``commands`` are shell code for gcloud's commands of these names, in addition to what it does
    here: the request's state is a file, and for a missing request it prints gcloud's message.
    """
    of = {name: commands.get(name, ":") for name in ("create", "describe", "ssh")}
    (folder / "gcloud").write_text(
        '#!/usr/bin/env bash\necho "$3 $4" >> "$(dirname "$0")/calls"\n'
        'cd "$(dirname "$0")"\n'
        'case "$3 $4" in\n'
        f'"queued-resources create") echo ACTIVE > state; {of["create"]} ;;\n'
        f'"queued-resources describe") {of["describe"]}\n'
        'if [[ ! -f state ]]; then echo "ERROR: NOT_FOUND: no resource" >&2; exit 1; fi\n'
        "cat state ;;\n"
        '"queued-resources delete") rm state ;;\n'
        f'"tpu-vm ssh") {of["ssh"]} ;;\n'
        "esac\n"
    )
    # A script that waits for ever is killed.
    (folder / "sleep").write_text(
        '#!/usr/bin/env bash\necho >> "$0.count"\n(($(wc -l < "$0.count") < 30)) || kill $PPID\n'
    )
    for tool in ("gcloud", "sleep"):
        (folder / tool).chmod(0o755)
    done = launch("tpu_pod.sh", *OPTIONS["tpu_pod.sh"], tools=folder)
    calls = folder / "calls"
    return done, [c for c in calls.read_text().splitlines() if "describe" not in c]


ONCE = ["queued-resources create", "tpu-vm scp", "tpu-vm ssh", "queued-resources delete"]


def once(command):
    """Shell code that runs only the first time."""
    return f"if [[ ! -f done ]]; then touch done; {command}; fi"


def test_tpu_pod_is_asked_for_again_when_preempted(tmp_path):
    """The first slice is lost during the training."""
    done, calls = tpu_pod(tmp_path, ssh=once("echo SUSPENDED > state; exit 1"))
    assert done.returncode == 0, done.stderr
    assert calls == ONCE * 2
    assert "preempted" in done.stdout


def test_tpu_pod_is_asked_for_again_when_the_request_is_deleted(tmp_path):
    done, calls = tpu_pod(tmp_path, create=once("rm state"))
    assert done.returncode == 0, done.stderr
    assert calls == ONCE[:1] + ONCE


def test_tpu_pod_asks_for_no_slice_that_is_there(tmp_path):
    """gcloud fails once: that says nothing about the slice."""
    (tmp_path / "state").write_text("ACTIVE\n")
    done, calls = tpu_pod(tmp_path, describe=once("echo ERROR: UNAVAILABLE >&2; exit 1"))
    assert done.returncode == 0, done.stderr
    assert calls == ONCE[1:]


def test_tpu_pod_ends_with_the_message_of_gcloud(tmp_path):
    expired = "if [[ -f state ]]; then echo 'ERROR: Reauthentication failed.' >&2; exit 1; fi"
    done, calls = tpu_pod(tmp_path, describe=expired)
    assert done.returncode == 2 and calls == ONCE[:1]
    assert "Reauthentication failed" in done.stderr and "3 times in a row" in done.stderr


def test_slurm_script():
    text = dry("slurm.sh", "--time", "24:00:00", "--partition", "a100")
    options = [line.split(" ", 1)[1] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8"} <= set(options)
    assert {"--time=24:00:00", "--partition=a100", "--requeue"} <= set(options)
    (run,) = (line for line in text.splitlines() if line.startswith("srun"))
    assert words(run.removesuffix(" && exit"))[2:] == [
        *("python", "-m", "persongen_jax.train", *TRAINING)
    ]


def test_slurm_job_goes_back_into_the_queue_until_it_is_done(tmp_path):
    """srun and scontrol are stand-ins; the job's script itself runs."""
    (tmp_path / "job").write_text(dry("slurm.sh", "--tries", "2"))
    (tmp_path / "scontrol").write_text('#!/usr/bin/env bash\necho "$*"\n')
    (tmp_path / "srun").write_text('#!/usr/bin/env bash\nexit "$STATUS"\n')
    for tool in ("scontrol", "srun"):
        (tmp_path / tool).chmod(0o755)

    def job(status, restarts):
        environment = {"STATUS": status, "SLURM_RESTART_COUNT": restarts, "SLURM_JOB_ID": "7"}
        environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
        command = ["bash", tmp_path / "job"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        return done.returncode, done.stdout

    assert job("0", "0") == (0, "")
    assert job("75", "1") == (1, "requeue 7\n")
    assert job("1", "2") == (1, "")


def test_kubernetes_jobset():
    label = "cloud.google.com/gke-tpu-topology"
    text = dry("kubernetes.sh", "--resource", "google.com/tpu", "--select", f"{label}=4x4")
    jobset = yaml.safe_load(text)
    assert jobset["kind"] == "JobSet" and jobset["metadata"]["name"] == "people"
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 4
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {label: "4x4"}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "disk"
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "persongen_jax.train"]
    assert container["args"] == TRAINING
    assert container["resources"]["limits"] == {"google.com/tpu": 8}
    # The pods' variables are those that the package reads.
    from persongen_jax.parallel.distributed import jax_variables

    variables = {v["name"]: v["value"] for v in container["env"]}
    found = jax_variables({**variables, "JOB_COMPLETION_INDEX": "3"})
    assert found["coordinator_address"] == f"people-{job['name']}-0-0.people:8476"
    assert (found["num_processes"], found["process_id"]) == (4, 3)
    assert json.loads(variables["PERSONGEN_UNFINISHED_STATUS"]) == 75


@pytest.mark.parametrize("script", sorted(OPTIONS))
def test_what_is_missing_is_named(script):
    options = OPTIONS[script]
    for i in range(0, len(options), 2):
        done = launch(script, *options[:i], *options[i + 2 :], "--dry-run")
        assert done.returncode == 2 and options[i] in done.stderr, done.stderr
    assert "--config" in launch(script, *options, "--dry-run", training=()).stderr
    assert "--workdir" in launch(script, *options, "--dry-run", training=TRAINING[:2]).stderr
    assert "--colour is not an option" in launch(script, *options, "--colour", "red").stderr
