"""The agent's process: environ -> settings -> executor -> loop, until a signal ends it."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import structlog

from agent import app
from agent.executors.base import Executor, Isolating, Unusable
from agent.executors.sandbox import cgroups
from agent.images import parse_image_table
from agent.settings import Settings, from_environ
from common import logs
from common.clock import SystemClock
from common.environ import ConfigurationError

if TYPE_CHECKING:
    from agent.executors.sandbox.executor import SandboxExecutor

OK: Final = 0
FAILED: Final = 1
MISCONFIGURED: Final = 2

_log = structlog.get_logger()


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Run an agent until SIGTERM or SIGINT; the process's exit code.

    0 after a signal, 2 for a configuration or a machine that it cannot work with (each fault is a line on stderr),
    1 for a bug.
    """
    try:
        settings = from_environ(environ)
    except ConfigurationError as error:
        for fault in error.faults:
            sys.stderr.write(f"rap agent: {fault}\n")
        return MISCONFIGURED
    logs.configure(settings.log_level, settings.log_format, secrets=settings.secrets)
    try:
        # asyncio's own loop on purpose: it starts child processes four times as fast as uvloop.
        asyncio.run(_run(settings, make_executor(settings)))
    except Unusable as error:
        sys.stderr.write(f"rap agent: {error}\n")
        return MISCONFIGURED
    except Exception:
        _log.exception("agent_failed")
        return FAILED
    return OK


def make_executor(settings: Settings) -> Executor:
    """The executor that RAP_EXECUTOR names; the others, and the libraries that they need, are not even imported."""
    if settings.executor == "fake":
        from agent.executors.fake import FakeExecutor

        return FakeExecutor()
    if settings.executor == "docker":
        from agent.executors.docker.executor import DockerExecutor

        return DockerExecutor(settings.docker, sample_seconds=settings.sample_interval)
    sandbox = _make_sandbox(settings)
    if settings.executor == "slurm":
        from agent.executors.slurm.executor import SlurmExecutor

        return SlurmExecutor(sandbox, settings.slurm, folders=(settings.work_dir, settings.high_privacy_dir))
    return sandbox


def _make_sandbox(settings: Settings) -> "SandboxExecutor":
    from agent.executors.sandbox.executor import SandboxExecutor

    return SandboxExecutor(
        parse_image_table(settings.sandbox_images),
        allow_unisolated=settings.allow_unisolated,
        share_network=settings.sandbox_network,
        # On the nodes of a cluster the control groups are Slurm's.
        groups=cgroups.OFF if settings.executor == "slurm" else settings.sandbox_cgroups,
        filter_calls=settings.sandbox_seccomp,
        # A job shorter than the interval would end without metrics.
        sample_seconds=min(1.0, settings.sample_interval),
    )


async def _run(settings: Settings, executor: Executor) -> None:
    """The loop, until the first signal; a second one ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(signum: signal.Signals) -> None:
        _log.info("signal", signal=signum.name, exit_mode=settings.exit_mode)
        stop.set()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal, signum)
    try:
        await executor.check()
    except Unusable as error:
        raise Unusable(f"RAP_EXECUTOR is {settings.executor}, which cannot be used here: {error}") from error
    if isinstance(executor, Isolating) and not executor.isolated:
        # Declared to the controller, so that nobody takes such a backend for a safe one.
        executor.name = f"{executor.name} (unisolated)"
    structlog.contextvars.bind_contextvars(backend=settings.backend)
    _log.info("agent_starting", agent=settings.agent_id, executor=executor.name)
    if settings.dummy_data:
        _log.warning("dummy data only: no job gets secrets of a database", setting="USING_DUMMY_DATA_BACKEND")
    await app.run(settings, executor, SystemClock(), stop)


if __name__ == "__main__":
    sys.exit(main())
