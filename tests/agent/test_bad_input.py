"""What an agent that cannot start says, as the operator who starts it reads it: which setting, and why."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SECRET = "t0ken-of-the-agent"


def start(folder: Path, **values: str) -> str:
    """The agent's last words; it must not have started."""
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "BACKEND": "test",
        "RAP_CONTROLLER_URL": "http://127.0.0.1:1",
        "CONTROLLER_TASK_API_TOKEN": SECRET,
        "RAP_ALLOW_UNISOLATED": "true",
        "WORKDIR": str(folder / "work"),
        **values,
    }
    done = subprocess.run(
        [sys.executable, "-m", "agent"],
        env=environ,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert SECRET not in done.stderr
    assert "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert all(line.startswith("rap agent: ") for line in told)
    return "\n".join(told)


def test_an_executor_that_there_is_not(tmp_path: Path) -> None:
    said = start(tmp_path, RAP_EXECUTOR="dokcer")
    assert said == "rap agent: RAP_EXECUTOR is 'dokcer', which is not one of sandbox, docker, slurm, fake"


@pytest.mark.parametrize(("listens", "why"), [(None, "No such file or directory"), (False, "Connection refused")])
def test_a_docker_socket_that_refuses(tmp_path: Path, listens: bool | None, why: str) -> None:
    path = tmp_path / "s"
    if listens is not None:
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(str(path))
    said = start(tmp_path, RAP_EXECUTOR="docker", DOCKER_HOST=f"unix://{path}")
    assert said.startswith(
        "rap agent: RAP_EXECUTOR is docker, which cannot be used here: "
        f"cannot use the container engine at unix://{path}: {why}; "
    )
    assert "RAP_DOCKER_HOST or DOCKER_HOST" in said


def test_a_docker_address_of_another_form(tmp_path: Path) -> None:
    said = start(tmp_path, RAP_EXECUTOR="docker", DOCKER_HOST="ssh://me@there")
    assert said.startswith("rap agent: DOCKER_HOST is 'ssh://me@there', which is no address of the form unix:///path")


def test_a_partition_that_there_is_not(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol"):
        # Of all questions only the first is answered well: whether slurmctld is there.
        (programs / name).write_text('#!/bin/sh\ntest "$1" = ping && echo "Slurmctld(primary) at c is UP"\n')
        (programs / name).chmod(0o755)
    said = start(tmp_path, RAP_EXECUTOR="slurm", RAP_SLURM_PARTITION="nope", PATH=str(programs))
    assert said == (
        "rap agent: RAP_EXECUTOR is slurm, which cannot be used here: "
        "RAP_SLURM_PARTITION is 'nope', which is no partition of this cluster"
    )


def test_a_cluster_that_there_is_not(tmp_path: Path) -> None:
    said = start(tmp_path, RAP_EXECUTOR="slurm", PATH=str(tmp_path))
    assert "RAP_EXECUTOR is slurm, which cannot be used here: there is no sbatch in PATH" in said


@pytest.mark.parametrize("setting", ["WORKDIR", "HIGH_PRIVACY_STORAGE_BASE", "MEDIUM_PRIVACY_STORAGE_BASE"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, setting: str) -> None:
    """Below a file there can be no folder, even for root."""
    (tmp_path / "file").touch()
    said = start(tmp_path, **{setting: str(tmp_path / "file" / "folder")})
    assert f"{setting}: the folder {tmp_path}/file/folder cannot be made or written: Not a directory" in said


def test_a_folder_of_volumes_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "high").mkdir()
    (tmp_path / "high" / "volumes").touch()
    said = start(tmp_path, HIGH_PRIVACY_STORAGE_BASE=str(tmp_path / "high"))
    assert f"HIGH_PRIVACY_STORAGE_BASE: the folder {tmp_path}/high/volumes cannot be made or written" in said


def test_only_the_executor_that_is_used_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys, agent.__main__ as main; from agent.settings import from_environ; import os;"
        "main.make_executor(from_environ(os.environ));"
        "found = {'aiodocker', 'agent.executors.docker.executor', 'agent.executors.slurm.executor'} & set(sys.modules);"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    environ = {
        "PYTHONPATH": str(ROOT),
        "BACKEND": "test",
        "RAP_CONTROLLER_URL": "http://127.0.0.1:1",
        "CONTROLLER_TASK_API_TOKEN": SECRET,
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
