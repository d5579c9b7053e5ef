"""Images: looked up in the engine, pulled if they are missing, one pull at a time for each."""

import asyncio
from typing import Any, Final

import structlog
from aiodocker import Docker, DockerError

from agent.executors.base import ExecutorError, Run
from agent.executors.docker.engine import INSPECT, Engine, is_gone, is_outage
from agent.executors.docker.spec import DockerSettings, check_allowed, references

TRIES: Final = 3
PAUSE: Final = 1.0
"""Seconds between two tries (section 5.5)."""
_UNKNOWN: Final = (
    "manifest unknown",
    "not found",
    "does not exist",
    "denied",
    "unauthorized",
    "invalid reference",
    "no matching manifest",
)
"""What registries and engines say of an image that another try will not bring."""

log = structlog.get_logger()


class Images:
    """The images of one engine.

    :param pause: seconds between two tries of a pull.
    """

    def __init__(self, engine: Engine, settings: DockerSettings, *, pause: float = PAUSE) -> None:
        self._engine = engine
        self._settings = settings
        self._pause = pause
        self._pulls: dict[str, asyncio.Task[None]] = {}

    async def find(self, run: Run) -> str | None:
        """The name under which the engine has the run's image; None if it has it not.

        :raises ExecutorError: the image is not allowed.
        """
        check_allowed(run.image, self._settings)
        for reference in references(run, self._settings):
            if await self._inspect(reference) is not None:
                return reference
        return None

    async def provide(self, run: Run) -> str:
        """As `find`, pulling the image if need be. Whoever stops waiting stops no pull that others may wait for.

        :raises ExecutorError: the image is not allowed, unknown (both fatal), or cannot be had now.
        """
        if found := await self.find(run):
            return found
        reference = references(run, self._settings)[-1]
        pull = self._pulls.get(reference)
        if pull is None:
            pull = asyncio.create_task(self._pull(reference), name=f"pull {reference}")
            self._pulls[reference] = pull
            pull.add_done_callback(lambda done: self._forget(reference, done))
        await asyncio.shield(pull)
        return reference

    async def close(self) -> None:
        """Give up all pulls."""
        pulls = list(self._pulls.values())
        for pull in pulls:
            pull.cancel()
        await asyncio.gather(*pulls, return_exceptions=True)

    def _forget(self, reference: str, pull: "asyncio.Task[None]") -> None:
        self._pulls.pop(reference, None)
        if not pull.cancelled():
            pull.exception()  # seen, even if nobody waits any more

    async def _inspect(self, reference: str) -> Any:
        async def ask(docker: Docker) -> Any:
            try:
                return await docker.images.inspect(reference)
            except DockerError as error:
                if is_gone(error):
                    return None
                raise

        try:
            return await self._engine.call(ask, seconds=INSPECT)
        except DockerError as error:
            raise ExecutorError(f"Image '{reference}' cannot be looked up: {error.message}", fatal=False) from error

    async def _pull(self, reference: str) -> None:
        for left in reversed(range(TRIES)):
            try:
                async with asyncio.timeout(self._settings.pull_seconds):
                    await self._engine.docker.images.pull(reference)
                if await self._inspect(reference) is not None:
                    log.info("image pulled", image=reference)
                    return
                # A connection that broke half-way ends the progress report without an error in it.
                reason = "the pull ended early"
            except TimeoutError:
                reason = f"not pulled within {self._settings.pull_seconds:g} s (IMAGE_PULL_TIMEOUT)"
            except Exception as error:
                if not isinstance(error, DockerError) and not is_outage(error):
                    raise
                reason = error.message if isinstance(error, DockerError) else str(error) or type(error).__name__
                if isinstance(error, DockerError) and any(word in reason.lower() for word in _UNKNOWN):
                    where = "DOCKER_PROXY" if self._settings.proxy else "DOCKER_REGISTRY"
                    raise ExecutorError(f"Unknown image '{reference}' ({where}): {reason}", fatal=True) from error
            log.warning("image not pulled", image=reference, reason=reason, tries_left=left)
            if left:
                await asyncio.sleep(self._pause)
        raise ExecutorError(f"Image '{reference}' cannot be pulled: {reason}", fatal=False)
