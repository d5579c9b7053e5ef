"""How long a ready job takes to reach an agent's hands, on an idle system.

Times over HTTP on loopback, with every transition stored and committed with fsync:

* create -> task: from the moment `rap/create/` was answered to the moment the waiting claim was (negative if the task
  came first);
* create: the whole `rap/create/` call of a one-action RAP, git included, project file cached after the first;
* need -> dependant: from the moment the final report of a job is sent to the moment that its dependant's task is there.

Beside them, as the limit of the parts, a round trip to `/healthz` in the same run. Not timed: the agent's own work.

    python -m bench.dispatch [ROUNDS]
"""

import asyncio
import statistics
import sys
import time
from typing import Any

from bench.controller import Bench, commit, running
from common.ids import random_id

PROJECT = """
version: '4'
actions:
  first:
    run: python:v2 python first.py
    outputs: {highly_sensitive: {rows: first.csv}}
  second:
    run: python:v2 python second.py
    needs: [first]
    outputs: {highly_sensitive: {rows: second.csv}}
"""


async def post(bench: Bench, path: str, body: dict[str, Any]) -> dict[str, Any]:
    session = bench.portal if path.startswith("/controller") else bench.agent
    async with session.post(bench.url + path, json=body) as response:
        response.raise_for_status()
        answer: dict[str, Any] = await response.json()
        return answer


async def claim(bench: Bench, *held: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """One task by long-poll, and when it came. What is `held` is not offered again."""
    holding = [{"task_id": task["id"], "attempt": task["attempt"]} for task in held]
    request = {"agent": "bench", "slots": 1, "wait": 20, "holding": holding}
    while True:
        answer = await post(bench, "/agent/v1/test/claim", request)
        if answer["tasks"]:
            return answer["tasks"][0], time.perf_counter()


async def finish(bench: Bench, task: dict[str, Any]) -> None:
    report = {
        "task_id": task["id"],
        "attempt": task["attempt"],
        "stage": "finalized",
        "complete": True,
        "results": {"error": False, "exit_code": "0"},
    }
    await post(bench, "/agent/v1/test/reports", {"agent": "bench", "reports": [report]})


async def one_round(bench: Bench, head: str, number: int) -> dict[str, float]:
    """One RAP of two actions; seconds."""
    body = {
        "backend": "test",
        "rap_id": random_id(),
        "workspace": f"bench-{number}",
        "repo_url": str(bench.folder / "study"),
        "branch": "main",
        "commit": head,
        "database_name": "default",
        "requested_actions": ["second"],
        "codelists_ok": True,
        "force_run_dependencies": False,
        "created_by": "bench",
        "project": "bench",
        "orgs": [],
    }
    waiting = asyncio.create_task(claim(bench))
    await asyncio.sleep(0.05)  # the claim has looked, found nothing, and waits
    began = time.perf_counter()
    await post(bench, "/controller/v1/rap/create/", body)
    created = time.perf_counter()
    task, came = await waiting
    waiting = asyncio.create_task(claim(bench, task))
    await asyncio.sleep(0.05)
    sent = time.perf_counter()
    await finish(bench, task)
    second, started = await waiting
    await finish(bench, second)
    ping = time.perf_counter()
    async with bench.portal.get(f"{bench.url}/healthz") as response:
        await response.read()
    return {
        "create": created - began,
        "create -> task": came - created,
        "need -> dependant": started - sent,
        "round trip": time.perf_counter() - ping,
    }


async def main(rounds: int) -> None:
    async with running() as bench:
        head = commit(bench.folder / "study", PROJECT)
        for number in range(5):
            await one_round(bench, head, number)
        measured = [await one_round(bench, head, 5 + number) for number in range(rounds)]
    print(f"{rounds} rounds, milliseconds        p50     p99     max")
    for name in measured[0]:
        values = sorted(one[name] * 1000 for one in measured)
        p99 = values[min(len(values) - 1, int(len(values) * 0.99))]
        print(f"{name:26} {statistics.median(values):7.2f} {p99:7.2f} {values[-1]:7.2f}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
