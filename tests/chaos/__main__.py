"""Breaks everything at random while thousands of jobs run, then counts what was lost.

    make chaos                                              # the short form
    make chaos ARGS="--jobs 10000 --kills 300"              # the long form
    make chaos ARGS="--seed 7"                              # the same plan again
    make chaos ARGS="--mutate fencing"                      # must fail: a safeguard is off

Real processes: an embedded PostgreSQL (durable), two controllers, three agents over two backends (two with the
sandbox executor that share their storage, one with a fake executor whose jobs die with it). A portal sends random
graphs of jobs and cancels some. Meanwhile processes are killed, stopped for longer than a lease and restarted,
machines lose their jobs, operators pause, maintain and prepare for reboot, agents' clocks are wrong, and all requests
go through a proxy that drops, delays, repeats and cuts them. Then everything is mended, the rest runs to its end, and
a checker that shares no code with the system (`checker`, whose text says what is promised) reads the database, the
agents' disks and the record that every job wrote.

Exit code: 0 if all was well, 1 if not (the folder with logs, database and `verdict.json` is kept), 2 if it could not
run.
"""

import argparse
import asyncio
import json
import math
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import attrs
import structlog
from attrs import frozen

from cli.stack.postgres import PostgresError
from tests.chaos import checker, evidence
from tests.chaos.cluster import Cluster
from tests.chaos.killer import Killer
from tests.chaos.launcher import CAS, FENCING, MUTATIONS
from tests.chaos.plan import AGENTS, BACKENDS, Action, Plan, make_claim_plan, make_fencing_plan, make_plan
from tests.chaos.portal import Portal
from tests.chaos.proxy import Proxy

_log = structlog.get_logger()

SHORT_JOBS: Final = 240
SHORT_KILLS: Final = 18
_JOB: Final = Path(__file__).with_name("job.sh")
_POLL: Final = 1.0
_PATIENCE: Final = 180.0
_SHORT_PATIENCE: Final = 10.0
"""For a run that is meant to fail: what is stuck stays so."""


@frozen(kw_only=True)
class Options:
    """What a run is to be."""

    seed: int
    jobs: int = SHORT_JOBS
    kills: int = SHORT_KILLS
    seconds: float | None = None
    patience: float = _PATIENCE
    """Seconds without any progress, once everything is mended, that count as stuck."""
    mutation: str | None = None
    keep: bool = False

    def plan(self) -> Plan:
        """What will be done."""
        if self.mutation == FENCING:
            return make_fencing_plan()
        if self.mutation == CAS:
            return make_claim_plan()
        return make_plan(self.seed, jobs=self.jobs, kills=self.kills, seconds=self.seconds)


@frozen(kw_only=True)
class Outcome:
    """What came of it."""

    verdict: checker.Verdict
    story: Mapping[str, object]
    """Numbers about the run, for who reads its report."""
    folder: Path
    """The evidence, if it was kept."""


async def run(options: Options) -> Outcome:
    """One run, from nothing to its verdict. The folder stays if there are faults (or it was asked for)."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(64))
    # Short, because a socket lies in it; and not in a home, because the database's user must reach it.
    folder = Path(tempfile.mkdtemp(prefix="rap-chaos-"))
    os.chmod(folder, 0o755)
    plan = options.plan()
    cluster = Cluster(folder, skews=plan.skews, mutation=options.mutation)
    try:
        async with _network(plan, cluster) as (proxy, portal):
            began = time.monotonic()
            killer = Killer(cluster=cluster, portal=portal)
            finished = await _live(plan, options, killer, proxy, portal)
            found = await _read(cluster, plan, portal)
    finally:
        await cluster.close()
    verdict = checker.check(found)
    verdict.illegal_transitions.extend([*cluster.crashes, *portal.refused])
    story = {
        "seed": plan.seed,
        "raps": len(portal.accepted),
        "kills": killer.kills,
        "faults": {kind.value: count for kind, count in sorted(killer.done.items())},
        "requests": dict(sorted(proxy.met.items())),
        "attempts": sum(task.type == "runjob" for task in found.tasks),
        "starts": sum(line.exit_code is None for line in found.lines),
        "resubmitted": len(portal.resubmitted),
        "cancels": len(portal.acknowledged),
        "states": _count(found),
        "seconds": round(time.monotonic() - began, 1),
        "finished_in_time": finished,
    }
    body = {"story": story, "accepted": verdict.accepted, **verdict.faults}
    (folder / "verdict.json").write_text(json.dumps(body, indent=2))
    if verdict.clean and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(verdict=verdict, story=story, folder=folder)


@asynccontextmanager
async def _network(plan: Plan, cluster: Cluster) -> AsyncIterator[tuple[Proxy, Portal]]:
    """The cluster, running, with the proxy before it and the portal behind that."""
    repositories = {
        name: commit(cluster.folder / "studies" / name, study.project()) for name, study in plan.studies.items()
    }
    proxy = Proxy(list(cluster.ports.values()), plan.rates, random.Random(plan.seed + 1))
    await proxy.start()
    await cluster.start(proxy.port)
    while await evidence.count_agents(cluster.dsn) < len(AGENTS):  # noqa: ASYNC110  it is theirs to say
        await asyncio.sleep(0.1)
    async with aiohttp.ClientSession() as session:
        portal = Portal(
            url=f"http://127.0.0.1:{proxy.port}",
            client_token=cluster.tokens.client,
            operator_token=cluster.tokens.operator,
            repositories=repositories,
            session=session,
            rng=random.Random(plan.seed + 2),
        )
        try:
            yield proxy, portal
        finally:
            await proxy.close()


async def _live(plan: Plan, options: Options, killer: Killer, proxy: Proxy, portal: Portal) -> bool:
    """The bad time, then the good one; whether all came to its end within their time."""
    started = time.monotonic()
    polling = asyncio.create_task(_poll(portal))
    submitting = asyncio.create_task(portal.submit(plan, started))
    try:
        async with asyncio.timeout(plan.seconds + options.patience) as limit:
            await killer.carry_out(plan.faults, started)
            await asyncio.sleep(max(0.0, started + plan.seconds - time.monotonic()))
            _log.info("mended", after=round(time.monotonic() - started, 1))
            proxy.mend()
            killer.cluster.mend()
            for backend in BACKENDS:
                await portal.operate(backend, "maintenance", {"on": False})
                await portal.operate(backend, "unpause")
            await submitting
            await _settled(killer.cluster, portal, limit, options.patience)
    except TimeoutError:
        return False
    finally:
        for task in (polling, submitting):
            task.cancel()
        await asyncio.gather(polling, submitting, return_exceptions=True)
    return True


async def _poll(portal: Portal) -> None:
    while True:
        await portal.poll()
        await asyncio.sleep(_POLL)


async def _settled(cluster: Cluster, portal: Portal, limit: asyncio.Timeout, patience: float) -> None:
    """Return when the portal knows that all is finished, and no task is left that an agent has to confirm.

    The time runs out only when nothing has come to its end for so long: a slow machine is no fault.
    """
    least = math.inf  # not the last number: agents that take a task from each other make it rise and fall for ever
    # Other processes' progress, of which nobody tells us.
    while (left := await evidence.count_open(cluster.dsn)) or not portal.is_finished():
        if left < least:
            least = left
            limit.reschedule(asyncio.get_running_loop().time() + patience)
        await asyncio.sleep(_POLL / 2)


async def _read(cluster: Cluster, plan: Plan, portal: Portal) -> evidence.Evidence:
    actions: dict[str, Action] = {
        f"{request.rap_id}/{action.name}": action
        for request in plan.requests
        for action in plan.studies[request.study].actions.values()
    }
    for made, origin in portal.resubmitted.items():
        of_origin = {name.partition("/")[2]: action for name, action in actions.items() if name.startswith(origin)}
        actions |= {f"{made}/{name}": action for name, action in of_origin.items()}
    return await evidence.read(
        cluster.dsn,
        record_file=cluster.record,
        storages={backend: (cluster.high(backend), cluster.medium(backend)) for backend in BACKENDS},
        actions=actions,
        accepted=list(portal.accepted.values()),
        acknowledged=portal.acknowledged,
        contradictions=portal.contradictions,
    )


def commit(folder: Path, project: Mapping[str, object]) -> tuple[Path, str]:
    """Make `folder` a repository with this project and the job; it and its commit."""
    folder.mkdir(parents=True)
    (folder / "project.yaml").write_text(json.dumps(project))
    shutil.copy(_JOB, folder / "job.sh")
    identity = ("-c", "user.name=Chaos", "-c", "user.email=chaos@example.org")
    for arguments in (
        ("init", "--quiet", "--initial-branch=main"),
        ("add", "."),
        (*identity, "commit", "--quiet", "-m", "Study"),
    ):
        subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
    return folder, head.stdout.strip()


def _count(found: evidence.Evidence) -> dict[str, int]:
    codes = sorted(job.code for job in found.jobs.values())
    return {code: codes.count(code) for code in dict.fromkeys(codes)}


def tell(outcome: Outcome) -> str:
    """The report, for a person."""
    verdict = outcome.verdict
    lines = [f"{name}: {value}" for name, value in outcome.story.items()]
    lines += ["", f"{'jobs accepted':36}{verdict.accepted:>8}"]
    for kind, faults in verdict.faults.items():
        lines.append(f"{kind:36}{len(faults):>8}")
        lines += [f"    {fault}" for fault in faults[:10]]
    lines.append("" if verdict.clean else f"\nThe evidence is kept in {outcome.folder}")
    return "\n".join(lines)


def parse(arguments: list[str]) -> Options:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make chaos", description="See tests/chaos/__main__.py")
    parser.add_argument("--seed", type=int, default=None, help="replays a plan (default: a random one)")
    parser.add_argument("--jobs", type=int, default=SHORT_JOBS, help="jobs to run, at least")
    parser.add_argument("--kills", type=int, default=SHORT_KILLS, help="processes to kill; other faults come on top")
    parser.add_argument("--minutes", type=float, default=None, help="how long things are broken")
    parser.add_argument(
        "--patience",
        type=float,
        default=None,
        help="seconds without any progress, once all is mended, that count as stuck",
    )
    parser.add_argument("--mutate", choices=MUTATIONS, default=None, help="switch a safeguard off: must exit with 1")
    parser.add_argument("--keep", action="store_true", help="keep the evidence of a good run, too")
    given = parser.parse_args(arguments)
    return Options(
        seed=secrets.randbelow(10**6) if given.seed is None else given.seed,
        jobs=given.jobs,
        kills=given.kills,
        seconds=None if given.minutes is None else 60 * given.minutes,
        patience=given.patience or (_PATIENCE if given.mutate is None else _SHORT_PATIENCE),
        mutation=given.mutate,
        keep=given.keep,
    )


def main(arguments: list[str]) -> int:
    """Run once and tell; the exit code."""
    options = parse(arguments)
    sys.stdout.write(f"seed {options.seed}: {attrs.asdict(options)}\n")
    sys.stdout.flush()
    try:
        outcome = asyncio.run(run(options))
    except (PostgresError, OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"the run could not be made: {error}\n")
        return 2
    sys.stdout.write(f"{tell(outcome)}\n")
    return 0 if outcome.verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
