"""The fake executor: the contract, and what its arguments mean."""

import pytest

from agent.executors.base import Executor, ExecutorError, Phase
from agent.executors.fake import FakeExecutor, Script, parse_script
from tests.agent.executors.executor_contract import ExecutorContract, Maker, Subject, ended, output


class Fake:
    """The fake executor as the contract sees it."""

    image = "python:v2"

    def make(self) -> Executor:
        return FakeExecutor()

    def quick(self, *, log: str = "", code: int = 0, writes: str = "") -> tuple[str, ...]:
        args = [f"exit:{code}"]
        if log:
            args.append(f"log:{log}")
        if writes:
            args.append(f"write:{writes}")
        return tuple(args)

    def hang(self) -> tuple[str, ...]:
        return ("hang",)


class TestFake(ExecutorContract):
    """The contract on the fake executor."""

    @pytest.fixture
    def subject(self) -> Subject:
        return Fake()

    async def test_real_commands_end_at_once(self, executor: Executor, maker: Maker) -> None:
        run = maker("python", "analysis/model.py", "--exit", "3")
        await executor.execute(run)
        assert (await ended(executor, run)).code == 0

    async def test_writes_text(self, executor: Executor, maker: Maker) -> None:
        run = maker("write:output/a=b.csv=x,y", "write:empty")
        await executor.execute(run)
        assert (run.volume / "output" / "a").read_text() == "b.csv=x,y"
        assert (run.volume / "empty").read_text() == ""

    @pytest.mark.parametrize("path", ["../x", "/etc/x", "", "a/../../x"])
    async def test_writes_stay_in_the_volume(self, executor: Executor, maker: Maker, path: str) -> None:
        run = maker(f"write:{path}=x")
        with pytest.raises(ExecutorError) as caught:
            await executor.execute(run)
        assert caught.value.fatal
        assert (await executor.status(run)).phase is Phase.ABSENT

    async def test_release(self, maker: Maker) -> None:
        executor, run = FakeExecutor(), maker("hang", "exit:2", "log:was here")
        await executor.execute(run)
        await executor.release(run)
        exit = await ended(executor, run)
        assert (exit.code, exit.terminated) == (2, False)
        await executor.cleanup(run)


class InMemory(Fake):
    """The benchmarks' kind: what one object knows, another of the same agent must be."""

    def __init__(self) -> None:
        self.executor = FakeExecutor(durable=False)

    def make(self) -> Executor:
        return self.executor


class TestFakeInMemory(ExecutorContract):
    """The contract on the fake executor without files."""

    @pytest.fixture
    def subject(self) -> Subject:
        return InMemory()

    async def test_leaves_no_files(self, executor: Executor, maker: Maker) -> None:
        run = maker("log:hello")
        await executor.execute(run)
        assert await output(executor, run) == "hello\n"
        assert not run.state_dir.exists()


def test_parse_script() -> None:
    script = parse_script(("log:a", "log:b", "exit:7", "hang", "write:x=1", "exit:later", "Rscript", "logs"))
    assert script == Script(writes=(("x", "1"),), log="a\nb\n", code=7, hangs=True)
    assert parse_script(("python", "a.py")) == Script()
