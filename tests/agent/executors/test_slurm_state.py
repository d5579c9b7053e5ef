"""What Slurm's commands print, as recorded from Slurm 22.05, and what that means; options, script and limits."""

import marshal
import os
import shlex
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from agent.__main__ import make_executor
from agent.executors.base import Limits, Run, Unusable
from agent.executors.slurm import node as slurm_node
from agent.executors.slurm.notes import SlurmNotes
from agent.executors.slurm.options import Options, parse_args
from agent.executors.slurm.probe import judge_answer
from agent.executors.slurm.script import RUN_BOOTSTRAP, arguments, minutes, requests, script
from agent.executors.slurm.state import (
    Answer,
    Row,
    Verdict,
    judge,
    parse_accounted,
    parse_found,
    parse_queue,
    parse_shown,
    parse_submitted,
    read_answer,
)
from agent.settings import from_environ
from common.environ import ConfigurationError

QUEUE = """\
4|PENDING||PartitionDown
1|COMPLETED|node1|None
7|RUNNING|node[1-2]|None
3|PENDING||(PartitionConfig)
9|PENDING||ReqNodeNotAvail, UnavailableNodes:node1
"""
SHOWN = (
    "JobId=9 JobName=os-job-x UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901759 Nice=0 "
    "Account=(null) QOS=(null) JobState=TIMEOUT Reason=TimeLimit Dependency=(null) Requeue=0 Restarts=0 "
    "ReqNodeList=(null) ExcNodeList=(null) NodeList=node1 BatchHost=node1 Comment=rap JobState=COMPLETED "
)


def test_queue() -> None:
    rows = parse_queue(QUEUE)
    assert rows[1] == Row(job_id=1, state="COMPLETED", node="node1", reason="None")
    assert {number for number, row in rows.items() if row.is_over} == {1}
    assert {number for number, row in rows.items() if row.never_starts} == {3}
    assert rows[9].reason == "ReqNodeNotAvail, UnavailableNodes:node1"


def test_found() -> None:
    said = "12|RUNNING|rap a-001 xyz\n11|PENDING|rap a-001 xyz\n13|RUNNING|rap a-001 xyz2\n14|RUNNING|(null)\n"
    assert parse_found(said, "rap a-001 xyz") == (11, 12)


@pytest.mark.parametrize(
    ("said", "number"),
    [("12\n", 12), ("12;cluster\n", 12), ("plugin: hello\n12\n", 12), ("", None), ("Submitted batch job\n", None)],
)
def test_submitted(said: str, number: int | None) -> None:
    assert parse_submitted(said) == number


def test_shown() -> None:
    assert parse_shown(SHOWN) == Row(job_id=9, state="TIMEOUT", node="node1", reason="TimeLimit")
    assert parse_shown("") is None


def test_accounted() -> None:
    said = "9.batch|FAILED|node1\n9|CANCELLED by 1000|None assigned\n"
    assert parse_accounted(said, 9) == Row(job_id=9, state="CANCELLED")
    assert parse_accounted(said, 8) is None


@given(st.text())
def test_garbage_is_no_job(text: str) -> None:
    for number, row in parse_queue(text).items():
        assert number == row.job_id >= 0
    parse_found(text, "mark")
    parse_submitted(text)
    parse_shown(text)
    parse_accounted(text, 1)
    read_answer(text)


@given(st.text(alphabet="|\n 0123456789ABCDEFGHIJ=_()Job", max_size=200))
def test_garbage_that_looks_like_jobs(text: str) -> None:
    for row in (*parse_queue(text).values(), parse_shown(text), parse_shown("JobId=1 JobState=" + text)):
        if row is not None:
            judge(row, started=True)


@pytest.mark.parametrize(
    ("stderr", "answer"),
    [
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", Answer.AWAY),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", Answer.AWAY),
        ("squeue: error: slurm_receive_msg: Zero Bytes were transmitted or received", Answer.AWAY),
        ('sbatch: error: Munge encode failed: Failed to access "/run/munge/munge.socket.2"', Answer.AWAY),
        ("sbatch: error: Batch job submission failed: Slurm temporarily unable to accept job", Answer.LATER),
        ("sbatch: error: AssocMaxSubmitJobLimit", Answer.LATER),
        ("sbatch: error: Batch job submission failed: Invalid partition name specified", Answer.REFUSED),
        ("sbatch: error: Memory specification can not be satisfied", Answer.REFUSED),
        ("sbatch: unrecognized option '--bogus'", Answer.REFUSED),
        ("slurm_load_jobs error: Invalid job id specified", Answer.REFUSED),
        ("", Answer.REFUSED),
    ],
)
def test_failed_commands(stderr: str, answer: Answer) -> None:
    assert read_answer(stderr) is answer


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        ("TIMEOUT", Verdict(timed_out=True)),
        ("OUT_OF_MEMORY", Verdict(oom_killed=True)),
        ("CANCELLED", Verdict()),
        ("NODE_FAIL", Verdict(lost="Slurm ended the job on n1: NODE_FAIL (why)")),
        ("PREEMPTED", Verdict(lost="Slurm ended the job on n1: PREEMPTED (why)")),
        ("FAILED", Verdict(lost="the supervisor was killed on n1: said")),
    ],
)
def test_verdicts(state: str, verdict: Verdict) -> None:
    assert judge(Row(job_id=1, state=state, node="n1", reason="why"), started=True, said="said") == verdict


def test_a_job_that_vanished_is_lost() -> None:
    assert judge(None, started=True) == Verdict(lost="Slurm no longer knows the job")


def a_run(folder: Path, **more: object) -> Run:
    return evolve(
        Run(
            task_id="job-001",
            job_id="job",
            workspace="w",
            action="a",
            image="python:v2",
            image_sha=None,
            args=("secret-argument",),
            env={"TOKEN": "secret-value"},
            volume=folder / "volume",
            state_dir=folder / "state",
            limits=Limits(cpu_count=1.5, memory_bytes=1000, seconds=None),
        ),
        **more,
    )


def test_what_sbatch_is_told(tmp_path: Path) -> None:
    options = Options(partition="p", qos="q", args=("--constraint=fast", "--export=ALL"), python="/usr/bin/python3")
    folder = tmp_path / "50% of it's"
    told = arguments(a_run(folder), options, "mark")
    assert told[:3] == ["--constraint=fast", "--export=ALL", "--export=NONE"]
    assert {"--partition=p", "--qos=q", "--job-name=os-job-job", "--comment=mark", "--no-requeue"} <= set(told)
    assert f"--output={tmp_path}/50%% of it's/state/batch.log" in told
    assert not any(option.startswith(("--account", "--time")) for option in told)
    text = script(options.python, RUN_BOOTSTRAP, folder)
    assert shlex.split(text.splitlines()[1])[-1] == str(folder)
    assert "secret" not in text + " ".join(told)


@given(st.floats(0.001, 1e7), st.integers(1, 1 << 45), st.floats(0.01, 500))
def test_slurm_gives_no_less_than_was_asked(seconds: float, memory: int, cpus: float) -> None:
    cpu, mem, time = requests(Limits(cpu_count=cpus, memory_bytes=memory, seconds=seconds))
    assert int(cpu.partition("=")[2]) >= cpus
    assert int(mem.partition("=")[2].rstrip("M")) << 20 > memory
    assert int(time.partition("=")[2]) * 60 > seconds
    assert minutes(seconds) == int(time.partition("=")[2])


def test_arguments_of_the_operator() -> None:
    assert parse_args("--a=b '--reservation=night run'") == ("--a=b", "--reservation=night run")
    for raw in ("-p x", "--partition x", "job.sh", "--array=1-3", "--wrap=x", "--arr=1", "'--open", "--A=b"):
        with pytest.raises(ValueError, match=r"word|option|words"):
            parse_args(raw)


AGENT = {"BACKEND": "tpp", "RAP_CONTROLLER_URL": "http://c", "CONTROLLER_TASK_API_TOKEN": "x" * 20}


def test_settings() -> None:
    given = {
        "RAP_EXECUTOR": "slurm",
        "RAP_SLURM_PARTITION": "secure",
        "RAP_SLURM_ARGS": "--constraint=fast",
        "RAP_SLURM_PYTHON": "/shared/python3",
        "RAP_SLURM_POLL_SECONDS": "7",
    }
    settings = from_environ(AGENT | given)
    assert settings.slurm == Options(
        partition="secure", args=("--constraint=fast",), python="/shared/python3", poll_seconds=7
    )
    assert make_executor(settings).name == "slurm"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAP_SLURM_PARTITION", "a b"),
        ("RAP_SLURM_ACCOUNT", "--wrap"),
        ("RAP_SLURM_QOS", "$(x)"),
        ("RAP_SLURM_ARGS", "--array=1-9"),
        ("RAP_SLURM_PYTHON", "python3"),
        ("RAP_SLURM_POLL_SECONDS", "0"),
    ],
)
def test_settings_that_are_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        from_environ(AGENT | {name: value})


def test_one_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = SlurmNotes(tmp_path)
    notes.write_spec({"env": {"TOKEN": "x"}})
    assert (tmp_path / "spec").stat().st_mode & 0o777 == 0o600
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert slurm_node.claim() == {"env": {"TOKEN": "x"}}
    assert notes.job_id() == 12
    assert not list(tmp_path.glob("spec*")), "nothing of the environment is left"
    assert not notes.withdraw()
    with pytest.raises(FileNotFoundError):
        slurm_node.claim()


def test_a_claim_whose_answer_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    (tmp_path / "spec.12").write_bytes(marshal.dumps({"a": 1}))
    assert slurm_node.claim() == {"a": 1}


def test_a_last_word_is_not_overwritten(tmp_path: Path) -> None:
    notes = SlurmNotes(tmp_path)
    notes.begin_submission()
    notes.settle(Verdict(lost="first"))
    notes.settle(Verdict(lost="second"))
    exit = notes.exit()
    assert exit is not None
    assert exit.lost == "first"
    assert sorted(os.listdir(tmp_path)) == ["exit.json", "submission.json"]


def test_an_end_that_the_agent_asked_for_is_no_loss(tmp_path: Path) -> None:
    notes = SlurmNotes(tmp_path)
    notes.begin_submission()
    notes.request_end()
    notes.settle(Verdict(lost="NODE_FAIL"))
    exit = notes.exit()
    assert exit is not None
    assert (exit.terminated, exit.lost, exit.code) == (True, None, 137)


@pytest.mark.parametrize(
    ("own", "counter", "kills"),
    [
        ("0::/system.slice/job_1\n", "system.slice/job_1/memory.events", 2),
        ("5:memory:/slurm/uid_0/job_1\n3:cpu:/x\n", "memory/slurm/uid_0/job_1/memory.oom_control", 2),
        ("3:cpu:/x\n", "other", 0),
    ],
)
def test_counting_the_kernels_kills(tmp_path: Path, own: str, counter: str, kills: int) -> None:
    (tmp_path / "cgroup").write_text(own)
    path = tmp_path / "fs" / counter
    path.parent.mkdir(parents=True)
    path.write_text("low 0\noom 3\noom_kill_disable 0\noom_kill 2\n")
    assert slurm_node.oom_kills(str(tmp_path / "fs"), str(tmp_path / "cgroup")) == kills
    assert slurm_node.oom_kills(str(tmp_path / "gone"), str(tmp_path / "cgroup")) == 0


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, r"WORKDIR.*RAP_SLURM_PYTHON"),
        ({"node": "n1", "unseen": ["/srv/high"], "unrun": ""}, r"n1.*/srv/high.*HIGH_PRIVACY_STORAGE_BASE"),
        ({"node": "", "unseen": [], "unrun": "bwrap: no"}, r"a node.*bwrap: no.*bubblewrap"),
    ],
)
def test_nodes_that_jobs_cannot_work_on(answer: dict[str, object] | None, said: str) -> None:
    with pytest.raises(Unusable, match=said):
        judge_answer(answer)


def test_a_node_that_is_as_it_should_be() -> None:
    judge_answer({"node": "n1", "unseen": [], "unrun": ""})
