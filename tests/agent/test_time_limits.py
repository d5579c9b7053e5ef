"""The controller's limit of a job's time, and the agent's own: what the executor is told."""

from pathlib import Path

import pytest
from attrs import evolve

from agent.executors.base import Run
from tests.agent.stage import stand
from tests.agent.test_loop import until_forgotten

T1 = "jobone-001"


@pytest.mark.parametrize(("offered", "own", "told"), [(None, 90.0, 90), (60.0, 90.0, 60)])
async def test_the_executor_gets_the_smaller_limit(
    tmp_path: Path, offered: float | None, own: float | None, told: float | None
) -> None:
    async with stand(tmp_path, job_time_limit=own) as stage:
        seen: list[float | None] = []

        def script(run: Run) -> int:
            seen.append(run.limits.seconds)
            return 0

        stage.executor.script = script
        async with stage.agent():
            await stage.controller.offer(evolve(stage.run_task(), time_limit=offered))
            await until_forgotten(stage, T1)
        assert seen == [told]


async def test_a_restarted_agent_still_knows_the_limit(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None
        async with stage.agent():
            await stage.controller.offer(evolve(stage.run_task(), time_limit=60.0))
            await stage.executor.until(lambda: T1 in stage.executor.processes)
        async with stage.agent() as loop:
            await stage.controller.until(lambda: len(stage.controller.declarations) == 2)
            assert loop._jobs[T1]._run.limits.seconds == 60
            stage.executor.finish(T1, 0)
            await until_forgotten(stage, T1)


@pytest.mark.parametrize("limit", [-1.0])
async def test_a_limit_that_is_none_is_refused_by_its_name(tmp_path: Path, limit: float) -> None:
    async with stand(tmp_path) as stage:
        async with stage.agent():
            await stage.controller.offer(evolve(stage.run_task(), time_limit=limit))
            await until_forgotten(stage, T1)
        error = stage.controller.final(T1)["results"]["error"]
        assert (error["exception"], error["fatal"]) == ("BadDefinition", True)
        assert "time_limit" in error["message"]
        assert stage.executor.starts == []
