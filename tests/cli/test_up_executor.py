"""Which executor `rap up` takes: the one that is asked for, or the best that works; and what it says of it."""

import json
import socket
from pathlib import Path

import pytest

from agent.executors.choice import Choice
from cli.errors import Problem
from cli.stack import place as places
from cli.stack.executor import decide
from tests.cli.up_stack import rap, up

SANDBOX = Choice(name="sandbox", reason="asked")


@pytest.mark.slow
@pytest.mark.parametrize("host", ["unix://{}/docker.sock", "ssh://me@there"])
def test_the_best_that_works_is_taken_and_the_others_explained(tmp_path: Path, host: str) -> None:
    """A DOCKER_HOST that no agent could use hinders nobody who does not use Docker."""
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "docker.sock"))
    address = host.format(tmp_path)
    data = tmp_path / "data"
    environ = {"RAP_EXECUTOR": "", "DOCKER_HOST": address, "SLURM_CONF": str(tmp_path / "none")}
    with up(tmp_path, "--data", str(data), **environ) as running:
        (line,) = [each for each in running.said if each.startswith("executor: ")]
        info = json.loads((data / "ready.json").read_text())
    why = "connection refused" if address.startswith("unix") else f"DOCKER_HOST is '{address}'"
    assert line == f"executor: sandbox ({info['executor_reason']})"
    assert why in line
    assert "; slurm: " in line
    assert info["executor"] == "sandbox"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "environ"),
    [(["--executor", "docker"], {}), ([], {"RAP_EXECUTOR": "docker"}), (["--executor", "DOCKER"], {})],
)
def test_one_that_is_asked_for_is_not_replaced(tmp_path: Path, arguments: list[str], environ: dict[str, str]) -> None:
    missing = f"unix://{tmp_path}/docker.sock"
    done = rap(
        tmp_path, "up", "--data", str(tmp_path / "data"), "--port", "0", *arguments, **environ, DOCKER_HOST=missing
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "rap: the agent cannot start: rap agent: RAP_EXECUTOR is docker, which cannot be used"
    )
    assert f"{missing}: No such file or directory" in done.stderr
    assert "DOCKER_HOST" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [(["--executor", "dokcer"], {}, "--executor"), ([], {"RAP_EXECUTOR": "dokcer"}, "RAP_EXECUTOR")],
)
def test_a_word_that_is_no_executor(tmp_path: Path, arguments: list[str], environ: dict[str, str], words: str) -> None:
    done = rap(tmp_path, "up", "--data", str(tmp_path / "data"), *arguments, **environ)
    assert done.returncode == 2
    assert words in done.stderr
    assert "'dokcer' is not one of 'sandbox', 'docker', 'slurm', 'fake'" in done.stderr
    assert not (tmp_path / "data").exists()


def place(folder: Path, *, holder: str = "", tasks: tuple[str, ...] = ()) -> places.Place:
    """A folder that a `rap up` has left."""
    found = places.prepare(folder)
    (found.agent / "tasks").mkdir(parents=True)
    for task in tasks:
        (found.agent / "tasks" / task).touch()
    if holder:
        found.executor_note.write_text(holder)
    return found


def bare(folder: Path) -> dict[str, str]:
    return {"DOCKER_HOST": f"unix://{folder}/none"}


@pytest.fixture(autouse=True)
def _no_programs(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setenv("PATH", str(tmp_path))


async def test_the_executor_is_noted(tmp_path: Path) -> None:
    found = place(tmp_path)
    choice = await decide(found, bare(tmp_path), None)
    assert (choice.name, found.executor_note.read_text()) == ("sandbox", "sandbox")
    assert await decide(found, bare(tmp_path), Choice(name="fake", reason="asked")) == Choice(
        name="fake", reason="asked"
    )
    assert found.executor_note.read_text() == "fake"


async def test_jobs_that_a_killed_agent_left_keep_their_executor(tmp_path: Path) -> None:
    """Another would not know them, and start each of them a second time."""
    found = place(tmp_path, holder="docker", tasks=("job-001",))
    assert (await decide(found, bare(tmp_path), None)).name == "docker"
    with pytest.raises(Problem, match="still with the executor docker: run `rap up --executor docker` once"):
        await decide(found, bare(tmp_path), SANDBOX)
    assert found.executor_note.read_text() == "docker"
    (found.agent / "tasks" / "job-001").unlink()
    assert await decide(found, bare(tmp_path), SANDBOX) == SANDBOX


async def test_where_nothing_works_every_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"docker: there is no .*; slurm: there is no sbatch; sandbox: bubblewrap is not"):
        await decide(place(tmp_path), {**bare(tmp_path), "RAP_ALLOW_UNISOLATED": "false"}, None)
