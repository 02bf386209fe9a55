"""`scripts/tpu_vm.sh`: what it would do, and what it does with a gcloud that is a stand-in and runs commands here."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "tpu_vm.sh"
HOSTILE = ["runs/a b", "it's", '"', "$(touch hurt)", "`touch hurt`", "a\nb", "; touch hurt", "*", "\\", "é", ""]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def tpu_vm(*arguments, env=None, check=True):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TPU_")}
    command = ["bash", str(SCRIPT), *arguments]
    found = subprocess.run(
        command, capture_output=True, text=True, env={**clean, **(env or {})}, timeout=60, check=False
    )
    if check:
        assert found.returncode == 0, found.stderr
    return found


def said(*arguments, env=None):
    """The commands that a dry run prints, split as a shell would split them."""
    text = tpu_vm("--dry-run", *arguments, env=env).stdout
    # Only a shell can split what `printf %q` quotes.
    show = "show() { printf '%s\\0' \"$@\"; printf '\\1'; }\n"
    script = show + "".join(f'{name}() {{ show {name} "$@"; }}\n' for name in ("gcloud", "mkdir")) + text
    out = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    return [command.split("\0")[:-1] for command in out.split("\1")[:-1]]


def test_create():
    [command] = said("create", "pod", "--type", "v5litepod-256", "--zone", "us-west4-a", "--project", "p", "--spot")
    assert " ".join(command) == (
        "gcloud compute tpus tpu-vm create pod --accelerator-type=v5litepod-256 --version=v2-alpha-tpuv5-lite --spot "
        "--zone=us-west4-a --project=p"
    )


def test_options_come_from_the_environment_too():
    env = {"TPU_TYPE": "v6e-8", "TPU_ZONE": "z", "TPU_VERSION": "v2-alpha-tpuv6e", "TPU_SPOT": "1"}
    by_environment = said("create", "pod", env=env)
    options = ["--type", "v6e-8", "--zone", "z", "--version", "v2-alpha-tpuv6e", "--spot"]
    assert by_environment == said("create", "pod", *options)


def test_setup_copies_installs_and_tries_every_worker():
    commands = said("setup", "pod")
    assert [command[4] for command in commands] == ["scp", "ssh", "ssh", "ssh"]
    assert all("--worker=all" in command for command in commands)
    assert "uv pip install" in commands[1][-1]
    assert '".[tpu]"' in commands[1][-1]
    assert "device_count" in commands[2][-1]


def test_run_mounts_a_bucket_and_starts_the_program():
    commands = said(
        "run", "pod", "--bucket", "gs://bucket/some/runs/", "--", "scripts/run.py", "--workdir", "runs/demo"
    )
    assert "gcsfuse --implicit-dirs --only-dir some/runs bucket runs" in commands[0][-1]
    assert "scripts/run.py" in commands[1][-1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fetch", "pod", "runs/demo"], "scp --recurse pod:deft-tsds/runs/demo runs/demo --worker=0"),
        (["fetch", "pod", "runs/demo", "here"], "scp --recurse pod:deft-tsds/runs/demo here --worker=0"),
        (["fetch", "pod", "runs/demo", "--bucket", "b/r"], "rsync --recursive gs://b/r/demo runs/demo"),
        (["delete", "pod"], "delete pod"),
        (["delete", "pod", "--yes", "--zone", "z"], "delete pod --quiet --zone=z"),
    ],
)
def test_fetch_and_delete(arguments, expected):
    assert shlex.join(said(*arguments)[-1]).endswith(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "Pod"], "small letters"),
        (["create", "pod; rm -rf ~"], "small letters"),
        (["create", "-pod"], "unknown option"),
        (["create", "pod", "--zone"], "--zone needs a value"),
        (["create", "pod", "--sopt"], "unknown option --sopt"),
        (["destroy", "pod"], "unknown command destroy"),
        (["run", "pod"], "what is to be run is missing"),
        (["fetch", "pod"], "run folder on the machine is missing"),
        ([], "create, set up"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_done(arguments, message):
    found = tpu_vm("--dry-run", *arguments, check=False)
    assert found.returncode == 2
    assert message in found.stderr or "scripts/tpu_vm.sh create" in found.stderr
    assert found.stdout == ""


def test_help_is_the_comment_at_the_top():
    text = tpu_vm("--help").stdout
    assert text.startswith("A TPU VM, one host or a pod")
    assert "--dry-run" in text.splitlines()[-1]
    assert "set -euo" not in text


GCLOUD = """#!{python}
# A machine that is a folder: `ssh` runs the command there, `create` and `delete` make and remove it.
import json, os, pathlib, shutil, subprocess, sys
home = pathlib.Path(os.environ["MACHINE"])
arguments = sys.argv[1:]
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(arguments) + "\\n")
action = arguments[3]
if action == "describe":
    state = home / "state"
    if not state.exists():
        sys.exit(1)
    print(state.read_text())
elif action == "create":
    home.mkdir()
    (home / "state").write_text("READY")
elif action == "delete":
    shutil.rmtree(home)
elif action == "scp":
    shutil.copy(arguments[4], home / "deft-tsds.tar.gz")
elif action == "ssh":
    command = next(a for a in arguments if a.startswith("--command=")).removeprefix("--command=")
    if "uv pip install" in command:  # in place of the packages, a Python that tells its arguments
        (home / "deft-tsds/.venv/bin").mkdir(parents=True)
        python = home / "deft-tsds/.venv/bin/python"
        code = "import json, sys; print(json.dumps(sys.argv[1:])); sys.exit(sys.argv[-1] == 'wrong')"
        python.write_text("#!{python}\\n" + code)
        python.chmod(0o755)
        sys.exit()
    sys.exit(subprocess.run(["bash", "-c", command], cwd=home, env={{**os.environ, "HOME": str(home)}}).returncode)
"""


@pytest.fixture
def cloud(tmp_path):
    """The environment in which gcloud is the stand-in, and what was asked of it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gcloud").write_text(GCLOUD.format(python=sys.executable))
    (tmp_path / "bin/gcloud").chmod(0o755)
    calls = tmp_path / "calls"
    env = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "MACHINE": str(tmp_path / "machine"),
        "CALLS": str(calls),
    }

    def actions():
        found = [json.loads(line)[3] for line in calls.read_text().splitlines()]
        calls.unlink()
        return found

    return env, actions, tmp_path / "machine"


def arguments_of(found):
    return [json.loads(line) for line in found.stdout.splitlines() if line.startswith('["scripts')]


def test_arguments_arrive_as_they_were_given(cloud):
    env, _, machine = cloud
    found = tpu_vm("run", "pod", "--", "scripts/run.py", *HOSTILE, env=env)
    assert arguments_of(found) == [["scripts/run.py", *HOSTILE]]
    assert not list(machine.rglob("hurt"))


def test_run_creates_sets_up_and_goes_on_after_a_spot_machine_is_gone(cloud):
    env, actions, machine = cloud
    tpu_vm("run", "pod", "--spot", "--", "scripts/run.py", "first", env=env)
    assert actions() == ["describe", "create", "scp", "ssh", "ssh", "ssh", "ssh", "ssh"]
    tpu_vm("run", "pod", "--spot", "--", "scripts/run.py", "again", env=env)
    assert actions() == ["describe", "ssh", "ssh"]  # is it set up, and run
    (machine / "state").write_text("PREEMPTED")
    found = tpu_vm("run", "pod", "--spot", "--", "scripts/run.py", "third", env=env)
    assert actions()[:3] == ["describe", "delete", "create"]
    assert "PREEMPTED: creating another" in found.stderr
    assert arguments_of(found) == [["scripts/run.py", "third"]]
    (machine / "state").write_text("CREATING")
    assert "CREATING: wait" in tpu_vm("run", "pod", "--", "scripts/run.py", env=env, check=False).stderr


def test_the_exit_code_is_that_of_the_program(cloud):
    env, _, _ = cloud
    assert tpu_vm("run", "pod", "--", "scripts/run.py", "wrong", env=env, check=False).returncode == 1
    assert tpu_vm("run", "pod", "--", "scripts/run.py", "right", env=env, check=False).returncode == 0


def test_a_program_that_still_runs_is_followed_and_not_started_twice(cloud):
    env, _, machine = cloud
    tpu_vm("run", "pod", "--", "scripts/run.py", "first", env=env)
    folder = machine / "deft-tsds"
    # Until it is told to stop, or for a minute.
    program = "#!/bin/bash\necho started >> starts; for i in {1..600}; do [ -e stop ] && exit; sleep 0.1; done"
    (folder / ".venv/bin/python").write_text(program)
    (folder / "run.pid").unlink()
    command = ["bash", str(SCRIPT), "run", "pod", "--", "scripts/run.py"]
    pipes: dict[str, Any] = {"env": {**os.environ, **env}, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as first:
        while not ((folder / "starts").exists() and (folder / "run.pid").exists()):
            assert first.poll() is None
            time.sleep(0.05)
        with subprocess.Popen(command, **pipes) as second:
            assert second.stderr is not None
            said_first = second.stderr.readline()
            (folder / "stop").touch()
    assert b"still running" in said_first
    assert (first.returncode, second.returncode) == (0, 0)
    assert (folder / "starts").read_text() == "started\n"


def test_the_archive_has_what_git_tracks(cloud):
    import tarfile

    env, _, machine = cloud
    tpu_vm("create", "pod", env=env)
    tpu_vm("setup", "pod", env=env)
    with tarfile.open(machine / "deft-tsds.tar.gz") as archive:
        names = set(archive.getnames())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert names == {name for name in tracked if (ROOT / name).exists()}


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck")
def test_shellcheck_finds_nothing():
    subprocess.run(["shellcheck", str(SCRIPT)], check=True)


def test_bash_can_read_it():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
