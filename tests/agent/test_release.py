"""Releases at the agent: real files and real HTTP; what leaves is what a person has released and the policy names."""

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import pytest

from agent.core.redact import OUTPUTS_BYTES
from agent.core.releases import fit, order
from common.protocol import OPEN, Egress, Named, TaskOffer
from tests.agent.fake_controller import Fault
from tests.agent.stage import Stage, stand, write_output
from tests.agent.test_loop import T1, until_forgotten

REVIEWED = Egress(outputs=Named.MODERATELY_SENSITIVE, reviewed=True)
SPEC = {
    "output/table.csv": "moderately_sensitive",
    "output/refused.csv": "moderately_sensitive",
    "output/summary.txt": "minimally_sensitive",
    "output/rows.csv": "highly_sensitive",
}
FILES = {
    "output/table.csv": "a,b\n1,2\n",
    "output/refused.csv": "patient_id\n1\n",
    "output/summary.txt": "three\n",
    "output/rows.csv": "patient_id\n1\n2\n",
    "output/unmatched.log": "x\n",
}
TABLE = {
    "path": "output/table.csv",
    "level": "moderately_sensitive",
    "size": 8,
    "sha256": hashlib.sha256(b"a,b\n1,2\n").hexdigest(),
}
SUMMARY = {
    "path": "output/summary.txt",
    "level": "minimally_sensitive",
    "size": 6,
    "sha256": hashlib.sha256(b"three\n").hexdigest(),
}
RECORD = "high/logs/2026-02/os-job-jobone/released.json"


def write_all(run: Any) -> int:
    for name, text in FILES.items():
        path = run.volume / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


def task(*paths: str, number: int = 1, **changes: Any) -> TaskOffer:
    definition = {
        "job_id": "jobone",
        "created_at": 1_770_000_000,
        "workspace": "ws",
        "by": "token carol",
        "paths": list(paths) or None,
        "release": 1,
        "absent": [],
    }
    return TaskOffer(
        id=f"jobone-release-{number:03}",
        type="release",
        attempt=number,
        job_id="jobone",
        definition=definition | changes,
        attributes={},
        traceparent=None,
        created_at=1_770_000_100,
    )


async def run_job(stage: Stage) -> None:
    """One finished job with an output of every kind."""
    stage.executor.script = write_all
    await stage.controller.offer(stage.run_task(output_spec=SPEC))
    await until_forgotten(stage, T1)


async def until_concluded(stage: Stage, offer: TaskOffer) -> None:
    """Wait until the answer was acknowledged and nothing of the task is left to take up."""
    await stage.controller.until(lambda: offer.id in stage.controller.complete)
    if left := set().union(*(loop._concluding for loop in stage.loops)):
        await asyncio.wait(left)
    assert offer.id not in stage.notes


async def answer(stage: Stage, offer: TaskOffer) -> dict[str, Any]:
    await stage.controller.offer(offer)
    await until_concluded(stage, offer)
    final = stage.controller.final(offer.id)
    assert (final["stage"], final["attempt"]) == ("", offer.attempt)
    return dict(final["results"])


def sent(stage: Stage) -> bytes:
    return b"".join(stage.controller.traffic)


def results(*released: Any, **changes: Any) -> dict[str, Any]:
    return {"released": list(released), "refused": [], "withheld": 0, "left_out": 0, "unable": None} | changes


async def test_nothing_is_named_until_it_is_released_and_then_only_that(tmp_path: Path) -> None:
    async with stand(tmp_path, egress=REVIEWED) as stage, stage.agent():
        await run_job(stage)
        assert "outputs" not in stage.controller.final(T1)["results"]
        assert not any(name.encode() in sent(stage) for name in FILES)
        assert await answer(stage, task()) == results(SUMMARY, TABLE)
        for name in ("rows.csv", "refused.csv", "unmatched.log"):
            assert name.encode() not in sent(stage)
        record = json.loads(await asyncio.to_thread((tmp_path / RECORD).read_text))["released"]
        assert set(record) == {"output/table.csv", "output/summary.txt"}
        kept = record["output/table.csv"]
        assert (kept["by"], kept["sha256"], kept["workspace"]) == ("token carol", TABLE["sha256"], "ws")
        assert await answer(stage, task(number=2, by="token dave")) == results(SUMMARY, TABLE)
        again = json.loads(await asyncio.to_thread((tmp_path / RECORD).read_text))["released"]
        assert again == record, "who was first stays"


async def test_of_what_is_named_and_may_not_leave_nothing_more_is_told(tmp_path: Path) -> None:
    async with stand(tmp_path, egress=REVIEWED) as stage, stage.agent():
        await run_job(stage)
        named = ("output/rows.csv", "output/refused.csv", "output/none.csv", "../../etc/passwd", "output/table.csv")
        told = await answer(stage, task(*named))
        refused = [{"path": name, "reason": "not_permitted"} for name in named[:4]]
        assert told == results(TABLE, refused=refused)
        assert b"summary.txt" not in sent(stage)


def _overwrite(file: Path, tmp_path: Path) -> None:
    file.write_text("another job of the action was here")


def _remove(file: Path, tmp_path: Path) -> None:
    file.unlink()


def _link(file: Path, tmp_path: Path) -> None:
    """The same bytes, but somewhere else."""
    elsewhere = tmp_path / "elsewhere.csv"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def _make_pipe(file: Path, tmp_path: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _make_folder(file: Path, tmp_path: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("change", [_overwrite, _remove, _link, _make_pipe, _make_folder])
async def test_a_file_that_is_not_as_the_job_left_it_stays(tmp_path: Path, change: Any) -> None:
    async with stand(tmp_path, egress=REVIEWED) as stage, stage.agent():
        await run_job(stage)
        await asyncio.to_thread(change, tmp_path / "medium/workspaces/ws/output/table.csv", tmp_path)
        assert await answer(stage, task()) == results(SUMMARY, withheld=1)
        assert b"table.csv" not in sent(stage), "nobody named it"
        named = await answer(stage, task("output/table.csv", number=2))
        assert named == results(refused=[{"path": "output/table.csv", "reason": "changed"}])


@pytest.mark.parametrize(
    "egress", [Egress(), Egress(outputs=Named.MODERATELY_SENSITIVE), Egress(reviewed=True), OPEN], ids=lambda e: e.words
)
async def test_the_agents_own_policy_is_what_counts(tmp_path: Path, egress: Egress) -> None:
    async with stand(tmp_path, egress=REVIEWED) as stage:
        async with stage.agent():
            await run_job(stage)
        async with stage.agent(egress=egress):
            assert await answer(stage, task()) == results(unable="policy")
        async with stage.agent(egress=attrs.evolve(REVIEWED, outputs=Named.MINIMALLY_SENSITIVE)):
            assert await answer(stage, task(number=2)) == results(SUMMARY)


async def test_files_of_another_workspace_are_not_compared(tmp_path: Path) -> None:
    """A file that is there, and of the same contents, is answered like one that is not."""
    async with stand(tmp_path, egress=REVIEWED) as stage, stage.agent():
        await run_job(stage)
        other = tmp_path / "medium/workspaces/other"
        await asyncio.to_thread(shutil.copytree, tmp_path / "medium/workspaces/ws", other)
        assert await answer(stage, task("output/table.csv", workspace="other")) == results(unable="absent")
        assert await answer(stage, task("output/table.csv", number=2)) == results(TABLE)


async def test_what_a_later_attempt_left_is_released_anew(tmp_path: Path) -> None:
    async with stand(tmp_path, egress=REVIEWED) as stage, stage.agent():
        await run_job(stage)
        assert await answer(stage, task("output/table.csv")) == results(TABLE)
        stage.executor.script = lambda run: write_output(run, "a,b\n5,6\n")
        await stage.controller.offer(stage.run_task(attempt=2, output_spec=SPEC))
        await until_forgotten(stage, "jobone-002")
        again = await answer(stage, task("output/table.csv", number=2, by="token dave"))
        record = json.loads(await asyncio.to_thread((tmp_path / RECORD).read_text))["released"]["output/table.csv"]
        assert (record["by"], record["sha256"]) == ("token dave", again["released"][0]["sha256"])


async def test_an_agent_that_does_not_have_the_job_says_so(tmp_path: Path) -> None:
    async with stand(tmp_path, egress=REVIEWED) as stage, stage.agent():
        assert await answer(stage, task()) == results(unable="absent")
        assert not await asyncio.to_thread((tmp_path / RECORD).exists)


@pytest.mark.parametrize("broken", [{"job_id": "../x"}, {"workspace": "a/b"}, {"paths": 5}, {"created_at": 1e300}])
async def test_a_definition_that_makes_no_sense_fails_only_itself(tmp_path: Path, broken: dict[str, Any]) -> None:
    async with stand(tmp_path, egress=REVIEWED) as stage, stage.agent():
        assert await answer(stage, task(**broken)) == results(unable="failed")


async def test_a_broken_record_is_not_overwritten(tmp_path: Path) -> None:
    async with stand(tmp_path, egress=REVIEWED) as stage, stage.agent():
        await run_job(stage)
        await asyncio.to_thread((tmp_path / RECORD).write_text, "[")
        assert await answer(stage, task()) == results(unable="failed")
        assert await asyncio.to_thread((tmp_path / RECORD).read_text) == "["


async def test_a_killed_agent_reports_what_it_has_released(tmp_path: Path) -> None:
    async with stand(tmp_path, egress=REVIEWED) as stage:
        async with stage.agent():
            await run_job(stage)
            stage.controller.faults.append(Fault("/reports", status=503, containing=b"summary.txt"))
            await stage.controller.offer(task())
            await stage.controller.until(lambda: not stage.controller.faults)
        assert stage.notes == [task().id]
        assert await asyncio.to_thread((tmp_path / RECORD).exists)
        async with stage.agent():
            await until_concluded(stage, task())
        assert stage.controller.final(task().id)["results"] == results(SUMMARY, TABLE)


async def test_many_releases_at_once_hold_up_no_job(tmp_path: Path) -> None:
    """Each hashes files or waits for a lock, in one of the threads that jobs need as well."""
    pool = ThreadPoolExecutor(max_workers=8)  # what an agent has beside a thread for each slot
    asyncio.get_running_loop().set_default_executor(pool)
    offers = [task(number=number) for number in range(1, 11)]
    async with stand(tmp_path, egress=REVIEWED) as stage, stage.agent():
        await run_job(stage)
        with await asyncio.to_thread(_hold, (tmp_path / RECORD).with_name(".lock")):
            for offer in offers:
                await stage.controller.offer(offer)
            await stage.controller.offer(stage.run_task("jobtwo", action="other"))
            async with asyncio.timeout(20):
                await until_forgotten(stage, "jobtwo-001")
            assert not any(offer.id in stage.controller.complete for offer in offers)
        for offer in offers:
            await until_concluded(stage, offer)
            assert stage.controller.final(offer.id)["results"] == results(SUMMARY, TABLE)


def _hold(lock: Path) -> BinaryIO:
    """Be another agent on the same storage that does not get on."""
    file = lock.open("wb")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def test_what_a_lost_report_told_is_told_again_first() -> None:
    outputs = [{"path": name} for name in ("a", "b", "c")]
    records = {"a": {"task_id": "earlier"}, "c": {"task_id": "mine"}}
    assert [each["path"] for each in order(outputs, records, "mine")] == ["c", "b", "a"]


def test_a_report_names_as_many_as_it_can_hold() -> None:
    outputs = [{"path": "x" * 1000, "level": "l", "size": 1, "sha256": "s"}] * 5000
    assert OUTPUTS_BYTES / 1200 < fit(outputs) < OUTPUTS_BYTES / 1000
