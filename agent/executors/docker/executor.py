"""Jobs as containers of a Docker Engine, or of Podman through its compatible socket.

The engine is the memory: a container is found again by its name and labels, whoever started it. What the engine
does not know or may forget is in the run's notes (`notes`). While an agent lives, a follower per run (`follower`)
waits for its end, holds its time limit, and copies its output; an agent that comes back makes them anew.

What the engine's own restart means depends on the engine: with `live-restore` (and with Podman) containers go on and so
do we. Without it the engine ends them; then the run is lost, through no fault of the job, and worth another attempt.
"""

import asyncio
import socket
import time
from collections.abc import Mapping
from typing import Any, Final

import structlog
from aiodocker import DockerError

from agent.executors.base import ExecutorError, Exit, Phase, Run, Status
from agent.executors.docker import profile
from agent.executors.docker.cgroup import Account
from agent.executors.docker.engine import Engine, Flavour, is_gone
from agent.executors.docker.exit import (
    Circumstances,
    compose_exit,
    engine_restarted,
    has_ended,
    has_started,
    lost_exit,
    may_be_lost,
    time_ns,
)
from agent.executors.docker.follower import Follower, copy_log, kill
from agent.executors.docker.images import PAUSE, Images
from agent.executors.docker.notes import OUTAGE, TERMINATED, TIMED_OUT, Notes, add_sample
from agent.executors.docker.spec import (
    AGENT,
    TASK,
    DockerSettings,
    check_words,
    container_body,
    container_name,
    database_host,
    engine_path,
)
from agent.executors.docker.volumes import VolumeUnseen, check_seen, find_entry, keep_beside
from agent.executors.processes import boot_id
from common.protocol import OnLoss

TERMINATE_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 20.0
"""A Docker Engine that stops gives its containers 15 s, and answers until the last of them has ended."""
APPEAR_SECONDS: Final = 10.0
"""How long a name may be taken before there is a container of that name to be seen: the engine is making it."""
CONFLICT: Final = 409
BAD_REQUEST: Final = 400

log = structlog.get_logger()


class DockerExecutor:
    """The executor `docker`.

    :param sample_seconds: how often the use of CPU and memory is looked at.
    :param log_bytes: how much output is kept.
    :param pull_pause: seconds between two tries of a pull.
    :param grace_seconds: how long an engine that may be stopping is given to show it, where a run ended as if killed.
    """

    name = "docker"
    on_loss = OnLoss.RETRY

    def __init__(
        self,
        settings: DockerSettings,
        *,
        sample_seconds: float = 10.0,
        log_bytes: int = 1 << 30,
        pull_pause: float = PAUSE,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._settings = settings
        self._sample_seconds = sample_seconds
        self._log_bytes = log_bytes
        self._grace_seconds = grace_seconds
        self._engine = Engine(settings.host)
        self._images = Images(self._engine, settings, pause=pull_pause)
        self._followers: dict[str, Follower] = {}
        self._starts: dict[str, asyncio.Task[None]] = {}
        self._accounts: dict[str, Account] = {}

    async def check(self) -> None:
        """Look at the engine.

        :raises Unusable: it cannot be reached, is too old, or cannot limit what jobs use.
        """
        await self._engine.check()

    async def prepare(self, run: Run) -> None:
        """Find the image, or pull it.

        :raises ExecutorError: the image is not allowed, unknown, or cannot be had now; the environment is malformed.
        """
        check_words(run)
        await self._images.provide(run)

    async def execute(self, run: Run) -> None:
        """Create and start the container. An image that is not there is not pulled now.

        :raises ExecutorError: it could not be started.
        """
        check_words(run)
        if (await self.status(run)).phase is not Phase.ABSENT:
            return
        # Once the engine was asked, the answer is waited for, whoever loses patience: a container that nobody
        # knows of would run unseen. `terminate` and `cleanup` wait for it too.
        start = self._starts.get(run.task_id)
        if start is None:
            start = asyncio.create_task(self._start(run), name=f"start {run.task_id}")
            self._starts[run.task_id] = start
            start.add_done_callback(lambda done: self._end_start(run.task_id, done))
        await asyncio.shield(start)

    def _end_start(self, task_id: str, start: "asyncio.Task[None]") -> None:
        self._starts.pop(task_id, None)
        if not start.cancelled():
            start.exception()  # seen, even if nobody waits any more

    async def _start(self, run: Run) -> None:
        image = await self._images.find(run)
        if image is None:
            raise ExecutorError(f"Image '{run.image}' is not there any more; it has to be pulled again", fatal=False)
        flavour = await self._engine.flavour()
        entry = await find_entry(run.volume) if flavour.podman else None
        body = container_body(
            run,
            self._settings,
            image,
            host_cpus=flavour.cpus,
            podman=flavour.podman,
            extra_hosts=await _resolve(database_host(run)),
            seccomp=await self._filter(run, flavour),
        )
        name = container_name(run)
        try:
            made = await self._make(run, body)
            if entry is not None:
                await check_seen(self._engine, name, entry)
            await self._begin(run, name, made)
        except DockerError as error:
            await self._remove(name)
            raise self._explain(run, error) from error
        except VolumeUnseen:
            await self._remove(name)
            raise
        container = await self._own(run)
        if container is None:
            raise ExecutorError(f"container {name} was removed as it was started", fatal=False)
        started = time_ns(container["State"].get("StartedAt"))
        await asyncio.to_thread(Notes(run.state_dir).start, str(container["Id"]), started)
        if not has_ended(container):
            self._follow(run, started)

    async def _filter(self, run: Run, flavour: Flavour) -> str | None:
        """The filter of system calls, as the engine wants it; None for the engine's own.

        Docker takes the filter itself and no path, Podman a path and nothing else. Beside the volumes the file is where
        Podman sees it, and no job does.
        """
        if self._settings.seccomp == profile.ENGINE or flavour.machine not in profile.MACHINES:
            return None
        if not flavour.podman:
            return profile.text()
        try:
            await asyncio.to_thread(keep_beside, run.volume, profile.file_name(), profile.text())
        except OSError as error:
            raise ExecutorError(f"cannot keep the filter of system calls: {error}", fatal=False) from error
        return str(engine_path(run, self._settings, profile.file_name()))

    async def _begin(self, run: Run, name: str, made: Mapping[str, Any] | None) -> None:
        account = Account(str(made["Id"])) if made else None
        try:
            await self._engine.call(lambda docker: docker.containers.container(name).start())
        finally:
            if account is not None and account.newest is not None:
                self._accounts[run.task_id] = account
            elif account is not None:  # not on this machine, or not begun
                await account.close()

    async def _make(self, run: Run, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """The run's container: made now, by another agent of the same id, or before we were killed."""
        name, until = container_name(run), time.monotonic() + APPEAR_SECONDS
        while True:
            try:
                await self._create(name, body)
            except _Exists:
                made = await self._own(run)
                if made is None and time.monotonic() < until:
                    await asyncio.sleep(0.05)
                    continue
                return made
            return await self._own(run)

    async def _create(self, name: str, body: Mapping[str, Any]) -> None:
        try:
            await self._engine.call(lambda docker: docker.containers.create(dict(body), name=name))
        except DockerError as error:
            if error.status == CONFLICT or "already in use" in error.message:
                raise _Exists from error  # made by another agent of the same id, or before we were killed
            raise

    async def _own(self, run: Run) -> dict[str, Any] | None:
        """The run's container; None if it has none.

        :raises ExecutorError: what has its name is somebody else's.
        """
        name = container_name(run)
        container = await self._engine.inspect(name)
        if container is None:
            return None
        labels = (container.get("Config") or {}).get("Labels") or {}
        if (labels.get(TASK), labels.get(AGENT)) != (run.task_id, self._settings.agent_id):
            owner = labels.get(AGENT) or "nobody we know"
            raise ExecutorError(
                f"container {name} is there already and belongs to {owner}, not to agent {self._settings.agent_id} "
                "(RAP_AGENT_ID)",
                fatal=False,
            )
        return container

    def _explain(self, run: Run, error: DockerError) -> ExecutorError:
        said = error.message.strip()
        if run.network and "network" in said.lower():
            network = self._settings.database_network
            said = f"{said}; network '{network}' is what DATABASE_ACCESS_NETWORK names"
        mount = "mount" in said.lower() or "bind source" in said.lower()
        if mount:
            said = f"{said}; if the agent runs in a container itself, DOCKER_HOST_VOLUME_DIR must say where volumes are"
        if "seccomp" in said.lower():
            said = (
                f"{said}; if Podman cannot see the agent's files, DOCKER_HOST_VOLUME_DIR must say where volumes are; "
                f"{profile.SETTING}={profile.ENGINE} leaves the filter of system calls to the engine"
            )
        # A request that the engine calls bad is bad for ever: a limit below its least, say.
        return ExecutorError(f"cannot start a job: {said}", fatal=error.status == BAD_REQUEST and not mount)

    async def status(self, run: Run) -> Status:
        """The run's phase: as it was noted when it ended, else as the engine sees it."""
        notes = Notes(run.state_dir)
        if (ended := await asyncio.to_thread(notes.exit)) is None:
            container = await self._own(run)
            if container is not None and has_started(container) and not has_ended(container):
                return Status(phase=Phase.RUNNING, started_at_ns=time_ns(container["State"]["StartedAt"]))
            ended = await self._settle(run)
        if ended is None:
            return Status(phase=Phase.ABSENT)
        return Status(phase=Phase.EXITED, started_at_ns=ended.started_at_ns, exit=ended)

    async def _settle(self, run: Run) -> Exit | None:
        """Look at a container that does not run, and note how it ended; None if it never began."""
        notes = Notes(run.state_dir)
        if (noted := await asyncio.to_thread(notes.exit)) is not None:
            return noted
        container = await self._own(run)
        metrics = await self._sum_up(run, container)
        terminated = await asyncio.to_thread(notes.marked, TERMINATED)
        if container is None:
            started = await asyncio.to_thread(notes.started)
            if started is None:
                return None
            reason = "the container engine has its container no longer"
            ended = lost_exit(reason, started.at_ns, time.time_ns(), metrics, terminated=terminated)
        elif not has_ended(container):
            return None
        else:
            await asyncio.to_thread(notes.begin)
            await self._copy_rest(run)
            ended = compose_exit(container, await self._look_around(notes, container, terminated), metrics)
        return await asyncio.to_thread(notes.keep_exit, ended)

    async def _sum_up(self, run: Run, container: Mapping[str, Any] | None) -> dict[str, float]:
        """The four metrics of a run that is over: what the engine told, and of a short one what the kernel counted."""
        usage = await asyncio.to_thread(Notes(run.state_dir).usage)
        account = self._accounts.get(run.task_id)
        if account is None or container is None or not has_ended(container):
            return usage.metrics()
        await account.close()
        self._accounts.pop(run.task_id, None)
        if (newest := account.newest) is not None:
            started, finished = (time_ns(container["State"].get(name)) for name in ("StartedAt", "FinishedAt"))
            # The newest reading of a short run may be from its beginning, or from after its end: Podman leaves the
            # group for half a second. What was counted, was counted until the end.
            usage = add_sample(usage, newest.stats(), started_ns=started, now_ns=finished)
        return usage.metrics()

    async def _copy_rest(self, run: Run) -> None:
        try:
            await self._engine.call(
                lambda _: copy_log(self._engine, run, container_name(run), self._log_bytes, follow=False)
            )
        except DockerError as error:
            log.warning("output cannot be read", task=run.task_id, reason=error.message)

    async def _look_around(self, notes: Notes, container: Mapping[str, Any], terminated: bool) -> Circumstances:
        started = await asyncio.to_thread(notes.started)
        timed_out = await asyncio.to_thread(notes.marked, TIMED_OUT)
        outage = await asyncio.to_thread(notes.marked, OUTAGE)
        restarted = False
        if may_be_lost(container) and not (terminated or timed_out or outage):
            restarted = await self._engine_restarts(container)
        return Circumstances(
            terminated=terminated,
            timed_out=timed_out,
            outage=outage,
            rebooted=started is not None and started.boot_id != await asyncio.to_thread(boot_id),
            restarted=restarted,
        )

    async def _engine_restarts(self, container: Mapping[str, Any]) -> bool:
        """Whether the engine was started again since the container was, or is on its way down."""
        if (await self._engine.flavour()).podman:
            return False  # which has no process that containers could depend on
        container_id = str(container["Id"])
        events = await self._engine.call(lambda _: self._engine.read_events(until=int(time.time()) + 1))
        if engine_restarted(container_id, events):
            return True
        since = (time.time_ns() - time_ns(container["State"].get("FinishedAt"))) / 1e9
        return await self._engine.goes_away(container_id, self._grace_seconds - since)

    def _follow(self, run: Run, started_ns: int) -> Follower:
        follower = self._followers.get(run.task_id)
        if follower is None or follower.task.done():
            follower = Follower(
                self._engine,
                run,
                container_name(run),
                started_ns,
                log_bytes=self._log_bytes,
                sample_seconds=self._sample_seconds,
                settle=self._settle,
            )
            self._followers[run.task_id] = follower
        return follower

    async def wait(self, run: Run) -> Exit:
        """Sleep until the engine says that the container has ended.

        :raises ExecutorError: the run is absent.
        """
        status = await self.status(run)
        while status.exit is None:
            if status.started_at_ns is None:
                raise ExecutorError(f"Task {run.task_id} is not there to wait for", fatal=False)
            follower = self._follow(run, status.started_at_ns)
            await asyncio.wait({follower.task})  # which does not end with us
            if not follower.task.cancelled():
                follower.task.result()
            status = await self.status(run)
        return status.exit

    async def terminate(self, run: Run) -> None:
        """Kill the container, and return when it has ended."""
        await self._until_started(run)
        status = await self.status(run)
        if status.phase is not Phase.RUNNING:
            return
        await kill(self._engine, run, container_name(run), TERMINATED)
        try:
            async with asyncio.timeout(TERMINATE_SECONDS):
                await self.wait(run)
        except TimeoutError:
            raise ExecutorError(f"{container_name(run)} was killed and has not ended", fatal=False) from None

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """Up to `limit` bytes of the combined output from byte `offset`.

        Output and errors are in the order in which the engine read them, which keeps each, but may swap lines of the
        one with lines of the other that were printed in the same instant.
        """
        notes = Notes(run.state_dir)
        if run.task_id not in self._followers and await asyncio.to_thread(notes.exit) is None:
            status = await self.status(run)
            if status.phase is Phase.RUNNING and status.started_at_ns is not None:
                self._follow(run, status.started_at_ns)
                await self._copy_rest(run)
        return await asyncio.to_thread(notes.read_log, offset, limit) if limit > 0 else b""

    async def sample(self, run: Run) -> Mapping[str, float]:
        """The four metrics, with a look at the engine now."""
        notes = Notes(run.state_dir)
        ended = await asyncio.to_thread(notes.exit)
        if ended is not None:
            return ended.metrics
        status = await self.status(run)
        if status.exit is not None:
            return status.exit.metrics
        if status.started_at_ns is None:
            return {}
        return await self._follow(run, status.started_at_ns).sample()

    async def layer_bytes(self, run: Run) -> int:
        """Bytes in the container's own layer: what the run has written outside its volume, /tmp above all.

        The engine walks the layer for it.

        :raises ExecutorError: the engine cannot be asked now.
        """
        name = container_name(run)
        try:
            found = await self._engine.call(lambda _: self._engine.get_json(f"containers/{name}/json", {"size": "1"}))
        except DockerError as error:
            raise ExecutorError(f"cannot ask for the size of {name}: {error.message}", fatal=False) from error
        size = found.get("SizeRw") if isinstance(found, dict) else None
        return size if isinstance(size, int) else 0

    async def cleanup(self, run: Run) -> None:
        """Remove the container, whatever it does, and the notes."""
        await self._until_started(run)
        container = await self._own(run)
        follower = self._followers.pop(run.task_id, None)
        if (account := self._accounts.pop(run.task_id, None)) is not None:
            await account.close()
        if follower is not None:
            follower.task.cancel()
            await asyncio.gather(follower.task, return_exceptions=True)
        if container is not None:
            await self._remove(container_name(run))
        await asyncio.to_thread(Notes(run.state_dir).forget)

    async def _remove(self, name: str) -> None:
        """
        :raises ExecutorError: the engine keeps it.
        """
        try:
            await self._engine.call(lambda docker: docker.containers.container(name).delete(force=True, v=True))
        except DockerError as error:
            if not is_gone(error) and not (error.status == CONFLICT and "already in progress" in error.message):
                raise ExecutorError(f"cannot remove container {name}: {error.message}", fatal=False) from error

    async def _until_started(self, run: Run) -> None:
        if start := self._starts.get(run.task_id):
            await asyncio.wait({start})

    async def close(self) -> None:
        """Stop following; containers carry on."""
        await self._images.close()
        tasks = [*self._starts.values(), *(follower.task for follower in self._followers.values())]
        self._followers.clear()
        await asyncio.gather(*(account.close() for account in self._accounts.values()))
        self._accounts.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._engine.close()


class _Exists(Exception):
    """A container of that name is there."""


async def _resolve(host: str | None) -> dict[str, str]:
    """The address of a host, as the agent knows it: the job itself can resolve no name.

    :raises ExecutorError: it has none.
    """
    if host is None:
        return {}
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ExecutorError(
            f"the database's host in DEFAULT_DATABASE_URL cannot be resolved: {error}", fatal=False
        ) from error
    # IPv4 first: networks of containers often have nothing else.
    found.sort(key=lambda entry: entry[0] is not socket.AF_INET)
    address = str(found[0][4][0])
    return {} if address == host else {host: address}
