"""`rap up` with real processes: starts, is found, survives what is killed, stops without a trace, carries on."""

import json
import os
import signal
import socket
import stat
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cli.up_stack import Up, eventually, left_over, rap, rap_json, study, up

pytestmark = pytest.mark.slow

QUICK = "import pathlib; p = pathlib.Path('output'); p.mkdir(); (p / 'a.txt').write_text('done')"
SLOW = """\
import os, pathlib, time
out = pathlib.Path("output")
out.mkdir(exist_ok=True)
with open(out / "runs.txt", "a") as runs:
    runs.write("run\\n")
while not pathlib.Path("go").exists():
    time.sleep(0.02)
"""
"""Notes that it was started, then waits for a file in its folder."""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A user's home; nothing may be left running that has to do with it."""
    yield tmp_path
    assert left_over(tmp_path) == []


def volume_of_running_job(data: Path) -> Path:
    """The folder of the one job, once its script has begun."""

    def find() -> Path | None:
        found = list(data.glob("storage/high_privacy/volumes/*/output/runs.txt"))
        return found[0].parents[1] if found else None

    return eventually(find)


def test_a_study_runs_and_the_next_start_carries_on(home: Path):
    data, ready = home / "data", home / "ready.json"
    repository = study(home / "study", QUICK)
    with up(home, "--data", str(data), "--ready-file", str(ready)) as first:
        info = json.loads(ready.read_text())
        assert sorted(info) == [
            *("agent_token", "backend", "client_token", "controller_url", "data_dir"),
            *("executor", "executor_reason", "pid"),
        ]
        assert (info["executor"], info["executor_reason"]) == ("sandbox", "as RAP_EXECUTOR says")
        assert (info["backend"], info["data_dir"], info["pid"]) == ("test", str(data), first.process.pid)
        assert json.loads((data / "ready.json").read_text()) == info
        for file in (ready, data / "ready.json", data / "tokens.json"):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        request = urllib.request.Request(
            f"{info['controller_url']}/controller/v1/backend/status/", headers={"Authorization": info["client_token"]}
        )
        with urllib.request.urlopen(request) as answer:
            assert [each["slug"] for each in json.load(answer)["backends"]] == ["test"]
        # Other commands find it by themselves.
        document = rap_json(home, "submit", str(repository), "work", "--wait")
        assert [job["state"] for job in document["rap"]["jobs"]] == ["succeeded"]
        assert (data / "storage/medium_privacy/workspaces/study/output/a.txt").read_text() == "done"
        first.process.send_signal(signal.SIGINT)
        assert first.ended() == 0
        assert first.said[-1] == "Stopped."
    assert not ready.exists()
    assert not (data / "ready.json").exists()
    assert left_over(home) == []
    assert rap(home, "list").returncode == 2

    with up(home, "--data", str(data), "--ready-file", str(ready)):
        again = json.loads(ready.read_text())
        assert (again["client_token"], again["agent_token"]) == (info["client_token"], info["agent_token"])
        raps = rap_json(home, "list")["raps"]
        assert [(each["id"], each["state"]) for each in raps] == [(document["rap_id"], "succeeded")]


def test_no_token_is_on_a_command_line_or_in_a_log(home: Path):
    data = home / "data"
    with up(home, "--data", str(data)) as running:
        tokens = json.loads((data / "tokens.json").read_text()).values()
        family = [running.process.pid, *(p.pid for p in psutil.Process(running.process.pid).children(recursive=True))]
        lines = " ".join(" ".join(psutil.Process(pid).cmdline()) for pid in family if psutil.pid_exists(pid))
        logs = "".join(log.read_text() for log in (data / "logs").iterdir())
        for token in tokens:
            assert token not in lines
            assert token not in logs
            assert token not in "\n".join(running.said)


def test_a_killed_agent_finds_its_job_again(home: Path):
    data = home / "data"
    repository = study(home / "study", SLOW)
    with up(home, "--data", str(data)) as running:
        rap_id = rap_json(home, "submit", str(repository), "work")["rap_id"]
        volume = volume_of_running_job(data)
        running.service("agent").kill()
        running.wait_for("The agent ended unexpectedly (SIGKILL); starting it again")
        (volume / "go").touch()
        (job,) = eventually(lambda: finished(home, rap_id))
        assert (job["state"], job["attempt"]) == ("succeeded", 1)
        assert (data / "storage/medium_privacy/workspaces/study/output/runs.txt").read_text() == "run\n"


@pytest.mark.parametrize("name", ["controller", "postgres"])
def test_what_is_killed_is_started_again(home: Path, name: str):
    data = home / "data"
    repository = study(home / "study", SLOW)
    with up(home, "--data", str(data)) as running:
        rap_id = rap_json(home, "submit", str(repository), "work")["rap_id"]
        volume = volume_of_running_job(data)
        running.service(name).kill()
        running.wait_for("ended unexpectedly")
        (volume / "go").touch()
        (job,) = eventually(lambda: finished(home, rap_id))
        assert (job["state"], job["attempt"]) == ("succeeded", 1)


def finished(home: Path, rap_id: str) -> list[dict[str, object]] | None:
    done = rap(home, "status", rap_id, "--json")
    if done.returncode not in {0, 1}:
        return None  # the controller is on its way back
    jobs = json.loads(done.stdout)["jobs"]
    return jobs if all(job["state"] in {"succeeded", "failed"} for job in jobs) else None


def test_kill_9_takes_everything_down_and_the_next_start_carries_on(home: Path):
    data = home / "data"
    repository = study(home / "study", SLOW)
    with up(home, "--data", str(data)) as running:
        rap_id = rap_json(home, "submit", str(repository), "work")["rap_id"]
        volume = volume_of_running_job(data)
        children = psutil.Process(running.process.pid).children()
        running.process.kill()
        running.ended()
        assert psutil.wait_procs(children, timeout=30)[1] == []
    with up(home, "--data", str(data)):
        (volume / "go").touch()
        (job,) = eventually(lambda: finished(home, rap_id))
        assert job["state"] == "succeeded"
        assert (data / "storage/medium_privacy/workspaces/study/output/runs.txt").read_text() == "run\n"


def test_a_second_one_on_the_same_folder_is_refused(home: Path):
    data = home / "data"
    with up(home, "--data", str(data)) as running:
        done = rap(home, "up", "--data", str(data), "--port", "0")
        assert done.returncode == 2
        assert done.stderr == f"rap: a `rap up` is already running on {data} (process {running.process.pid})\n"


def test_a_port_in_use_is_refused(home: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = rap(home, "up", "--data", str(home / "data"), "--port", str(port))
    assert done.returncode == 2
    assert done.stderr == f"rap: port {port} is in use: choose another with --port (0 finds a free one)\n"


def test_an_unwritable_folder_is_refused(home: Path):
    (home / "file").write_text("")
    done = rap(home, "up", "--data", str(home / "file" / "data"), "--port", "0")
    assert done.returncode == 2
    assert done.stderr == (
        f"rap: {home / 'file' / 'data'} cannot be used for data: Not a directory (choose another with --data)\n"
    )


def test_a_file_is_no_folder(home: Path):
    (home / "file").write_text("")
    done = rap(home, "up", "--data", str(home / "file"), "--port", "0")
    assert done.returncode == 2
    assert done.stderr == f"rap: {home / 'file'} cannot be used for data: File exists (choose another with --data)\n"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("RAP_POOL_SIZE", "many", "the controller cannot start: RAP_POOL_SIZE is 'many', which is not a whole"),
        ("RAP_AGENT_SLOTS", "many", "the agent cannot start: rap agent: RAP_AGENT_SLOTS is 'many'"),
        ("RAP_SANDBOX_IMAGES", "python", "the agent cannot start: rap agent: RAP_SANDBOX_IMAGES"),
    ],
)
def test_a_part_that_cannot_start_ends_it_with_its_message(home: Path, name: str, value: str, words: str):
    done = rap(home, "up", "--data", str(home / "data"), "--port", "0", **{name: value})
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("sign", ["lock", "tokens.json", "postgres/PG_VERSION", "logs/controller.log"])
def test_ctrl_c_during_the_start_leaves_nothing(home: Path, sign: str):
    """At four moments of the start; the `home` fixture looks for what is left."""
    data = home / "data"
    running = Up(home, "--data", str(data), "--port", "0")
    try:
        eventually((data / sign).exists)
        running.process.send_signal(signal.SIGINT)
        assert running.ended() == 0
    finally:
        running.close()
    assert not (data / "ready.json").exists()


def test_the_demo_leaves_figure_and_tables_and_nothing_else(home: Path):
    done = rap(home, "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    results = home / ".rap-demo" / "diabetes"
    figure = results / "output" / "report" / "progression.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert str(figure) in done.stdout
    assert not list(results.rglob("patients.csv")), "highly sensitive files stay where they are"
    for words in ("moderately_sensitive", "write_report", "succeeded", "Trace id"):
        assert words in done.stdout
    assert not (home / ".local" / "state" / "rap" / "up.json").exists()


def test_the_demo_fails_if_a_job_fails(home: Path):
    done = rap(home, "demo", RAP_SANDBOX_IMAGES=f"other={os.path.realpath('/bin/sh')}")
    assert done.returncode == 1
    assert "Unknown image" in done.stdout


def test_a_demo_that_cannot_leave_its_results_says_so_before_it_starts(home: Path):
    (home / ".rap-demo").write_text("")
    done = rap(home, "demo")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"rap: {home / '.rap-demo'} cannot be written: File exists\n"
