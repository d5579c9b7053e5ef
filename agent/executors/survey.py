"""Looks at this machine's executors, side by side and each within a bound, for `rap up` and `rap doctor`.

Each look asks first what is cheap: a machine without a Docker socket does not even import `aiodocker`. What it sees is
what an agent's own `check` would, and beyond that whether jobs could work here: are there images, does the engine see
our folders, does a node of the cluster.
"""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from attrs import evolve

from agent.executors.base import ExecutorError, Unusable
from agent.executors.choice import Prospect, Standing
from agent.executors.docker import spec as docker_spec
from agent.executors.docker.spec import DockerSettings
from agent.executors.sandbox import bubblewrap, seccomp
from agent.executors.sandbox.bubblewrap import Bubblewrap
from agent.executors.sandbox.executor import ALLOW_SETTING
from agent.executors.slurm import commands as slurm_commands
from agent.executors.slurm import options as slurm_options
from agent.executors.slurm import probe as slurm_probe
from common.environ import ConfigurationError, Environ

T = TypeVar("T")

SECONDS: Final = 5.0
"""How long each executor may take to answer."""
_NODE_SECONDS: Final = 4.0
"""How much of it a node of a cluster may take, once slurmctld has been asked."""
_SANDBOX_SECONDS: Final = 45.0
"""Nobody else's answer is waited for here, only this machine's; without it a busy one might find no executor at all."""
_CONTAINER_MARKS: Final = ("/.dockerenv", "/run/.containerenv")
_START_DOCKER: Final = "start it (systemctl start docker), or say where it listens: DOCKER_HOST=unix:///path/to/socket"
_TRIAL: Final = {"docker": "docker version", "slurm": "scontrol ping", "sandbox": "bwrap --ro-bind / / true"}
_ASK: Final = "rap up --executor {}"


async def survey(
    values: Mapping[str, str], folders: Sequence[Path], *, seconds: float = SECONDS
) -> tuple[Prospect, ...]:
    """Every executor that runs anything, in the order of `choice.ORDER`.

    :param values: the environment of the agent, with the settings of all executors.
    :param folders: of the agent, which a cluster's nodes have to see; they are there already.
    :param seconds: the bound of each look at what may not answer.
    """
    looks = (("docker", _look_at_docker(values)), ("slurm", _look_at_slurm(values, folders)))
    return tuple(
        await asyncio.gather(
            *(_bounded(name, look, seconds) for name, look in looks),
            _bounded("sandbox", _look_at_sandbox(values), max(seconds, _SANDBOX_SECONDS)),
        )
    )


async def _bounded(name: str, look: Awaitable[Prospect], seconds: float) -> Prospect:
    try:
        async with asyncio.timeout(seconds):
            return await look
    except TimeoutError:
        return _unusable(name, f"no answer within {seconds:g} s", f"see whether it hangs: {_TRIAL[name]}")


async def _look_at_docker(values: Mapping[str, str]) -> Prospect:
    try:
        settings = _read(values, lambda environ: docker_spec.read_settings(environ, "survey"))
    except ConfigurationError as error:
        return _unusable("docker", "; ".join(error.faults), "correct the setting")
    if settings.host.startswith("unix://"):
        path = settings.host.removeprefix("unix://")
        try:
            _, writer = await asyncio.open_unix_connection(path)
            writer.close()
        except PermissionError:
            advice = "let this user open it: usermod -aG docker USER (which makes the user root on this machine)"
            return _unusable("docker", f"this user may not open {path}", advice)
        except FileNotFoundError:
            return _unusable("docker", f"there is no {path}", _START_DOCKER)
        except OSError as error:
            return _unusable("docker", f"{path}: {(error.strerror or str(error)).lower()}", _START_DOCKER)
    try:
        return await _judge_engine(values, settings)
    except Unusable as error:
        return _unusable("docker", str(error), "correct the setting, or see the engine's log")


async def _judge_engine(values: Mapping[str, str], settings: DockerSettings) -> Prospect:
    """Of an engine that is likely to answer.

    :raises Unusable: it does not, or an agent could not use it.
    """
    from aiodocker import DockerError

    from agent.executors.docker.engine import Engine, is_outage

    engine = Engine(settings.host)
    try:
        await engine.check()
        version = await engine.docker.version()
        info = await engine.docker.system.info()
        images = await engine.docker.images.list()
    except Exception as error:
        if isinstance(error, DockerError) or is_outage(error):
            raise Unusable(f"{settings.host}: {error}") from error
        raise
    finally:
        await engine.close()
    told = _version_of(version)
    contained = await asyncio.to_thread(lambda: any(os.path.exists(mark) for mark in _CONTAINER_MARKS))
    if missing := _missing(values, settings, info, images, contained=contained):
        return Prospect(
            name="docker", standing=Standing.ON_REQUEST, finding=missing[0], advice=missing[1], version=told
        )
    there = sum(_is_allowed(image, settings) for image in images)
    found = f"{there} image{'s' * (there != 1)} that jobs may use {'are' if there != 1 else 'is'} there"
    return Prospect(name="docker", standing=Standing.READY, finding=found, version=told)


def _missing(
    values: Mapping[str, str],
    settings: DockerSettings,
    info: Mapping[str, Any],
    images: Sequence[Mapping[str, Any]],
    *,
    contained: bool,
) -> tuple[str, str] | None:
    """What jobs would miss in an engine that works, and what to do about it; None if nothing."""
    if settings.host_volume_dir is None:
        advice = f"DOCKER_HOST_VOLUME_DIR=/path/of/volumes {_ASK.format('docker')}"
        if not settings.host.startswith("unix://"):
            return f"{settings.host} may be another machine, which does not see the folders of this one", advice
        if info.get("Name") != socket.gethostname() and contained:
            return "this is a container, and the engine outside may not see the folders in here", advice
    options = " ".join(map(str, info.get("SecurityOptions") or ()))
    if ("rootless" in options or "userns" in options) and not values.get("DOCKER_USER_ID"):
        return (
            f"the engine maps users, so that jobs as {settings.user} could not write their files (DOCKER_USER_ID)",
            f"DOCKER_USER_ID=0 DOCKER_GROUP_ID=0 {_ASK.format('docker')}",
        )
    if not any(_is_allowed(image, settings) for image in images):
        return (
            f"it has no image of {settings.registry} (DOCKER_REGISTRY) or RAP_ALLOWED_IMAGES",
            f"docker pull {settings.registry}/python:v2; or, to have images pulled as jobs need them: "
            f"{_ASK.format('docker')}",
        )
    return None


def _is_allowed(image: Mapping[str, Any], settings: DockerSettings) -> bool:
    for name in (*(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ())):
        try:
            docker_spec.check_allowed(str(name), settings)
        except ExecutorError:
            continue
        return True
    return False


def _version_of(version: Mapping[str, Any]) -> str:
    components: Sequence[Mapping[str, Any]] = version.get("Components") or ({},)
    name = str(components[0].get("Name") or "Docker")
    return f"{'Docker' if name == 'Engine' else name.removesuffix(' Engine')} {version.get('Version', '')}".strip()


async def _look_at_slurm(values: Mapping[str, str], folders: Sequence[Path]) -> Prospect:
    for program in slurm_commands.PROGRAMS:
        if not await asyncio.to_thread(shutil.which, program):
            return _unusable("slurm", f"there is no {program}", "where there is a cluster: apt install slurm-client")
    try:
        options = _read(values, slurm_options.read)
    except ConfigurationError as error:
        return _unusable("slurm", "; ".join(error.faults), "correct the setting")
    try:
        found = (await asyncio.to_thread(_find_sandbox, values))[0]
    except ConfigurationError as error:
        return _unusable("slurm", "; ".join(error.faults), "correct the setting")
    except Unusable as error:
        if not _may_be_bare(values):
            return _unusable("slurm", f"it needs the sandbox: {error}", "see the line of the sandbox")
        found = None
    version = await _say("sbatch", "--version")
    try:
        return evolve(await _ask_cluster(options, found, folders), version=version)
    except Unusable as error:
        return evolve(_unusable("slurm", str(error), "sinfo --summarize; correct the setting"), version=version)


async def _ask_cluster(options: slurm_options.Options, sandbox: Bubblewrap | None, folders: Sequence[Path]) -> Prospect:
    """Ask slurmctld, then a node.

    :raises Unusable: jobs could not run there.
    """
    slurm = slurm_commands.Slurm()
    unheard = (slurm_commands.Away, slurm_commands.Busy, slurm_commands.Refused)
    try:
        await slurm.ping()
        known = not options.partition or await slurm.has_partition(options.partition)
    except unheard as error:
        advice = "see whether it runs: scontrol ping; if its configuration lies elsewhere: SLURM_CONF=/path"
        return _unusable("slurm", f"slurmctld does not answer ({_brief(error)})", advice)
    if not known:
        name = slurm_options.PARTITION_SETTING
        raise Unusable(f"{name} is {options.partition!r}, which is no partition of this cluster")
    try:
        async with asyncio.timeout(_NODE_SECONDS):
            await slurm_probe.ask(slurm, options, sandbox, folders, _NODE_SECONDS)
    except (*unheard, TimeoutError) as error:
        why = _brief(error) or f"none was free within {_NODE_SECONDS:g} s"
        return Prospect(
            name="slurm",
            standing=Standing.ON_REQUEST,
            finding=f"no node could be asked whether it sees {folders[0]}: {why}",
            advice=_ASK.format("slurm"),
        )
    found = "a node of the cluster answers and sees the folders here"
    return Prospect(name="slurm", standing=Standing.READY, finding=found, isolated=sandbox is not None)


async def _look_at_sandbox(values: Mapping[str, str]) -> Prospect:
    try:
        found, calls = await asyncio.to_thread(_find_sandbox, values)
    except ConfigurationError as error:
        return _unusable("sandbox", "; ".join(error.faults), "correct the setting")
    except Unusable as error:
        advice = "apt install bubblewrap, and allow user namespaces"
        if not _may_be_bare(values):
            advice += f"; or {ALLOW_SETTING}=true, for jobs without any isolation"
            return _unusable("sandbox", str(error), advice)
        finding = f"jobs run WITHOUT isolation, as plain processes ({ALLOW_SETTING}): {error}"
        return Prospect(name="sandbox", standing=Standing.READY, finding=finding, advice=advice, isolated=False)
    finding = f"it makes sandboxes here; filter of system calls: {calls}"
    version = await _say(found.path, "--version")
    return Prospect(name="sandbox", standing=Standing.READY, finding=finding, version=version)


def _find_sandbox(values: Mapping[str, str]) -> tuple[Bubblewrap, str]:
    """What `SandboxExecutor.check` finds, without what only the agent's own process may try: control groups (blocking).

    :return: bubblewrap, and what filters system calls.
    :raises ConfigurationError: a setting is faulty.
    :raises Unusable: there can be no sandbox.
    """
    wanted = _read(values, lambda environ: environ.choice(seccomp.SETTING, seccomp.AUTO, seccomp.CHOICES))
    found = bubblewrap.find("bwrap")
    program, lack = found.find_filter(wanted)
    return found, "libseccomp" if program else f"none ({lack})"


def _may_be_bare(values: Mapping[str, str]) -> bool:
    try:
        return _read(values, lambda environ: environ.flag(ALLOW_SETTING))
    except ConfigurationError:
        return False


async def _say(*command: str) -> str:
    """The first line of what a program prints; empty if it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    return said.decode(errors="replace").partition("\n")[0].strip() if process.returncode == 0 else ""


def _read(values: Mapping[str, str], read: Callable[[Environ], T]) -> T:
    """
    :raises ConfigurationError: with every fault of these settings.
    """
    environ = Environ(values)
    found = read(environ)
    environ.finish()
    return found


def _unusable(name: str, finding: str, advice: str) -> Prospect:
    return Prospect(name=name, standing=Standing.UNUSABLE, finding=finding, advice=advice)


def _brief(error: Exception) -> str:
    """The gist of what a command complained about: the last, but for `scontrol ping`, which adorns its answer."""
    parts = str(error).replace("\n", "; ").split("; ")
    return next((part for part in parts if " is DOWN" in part), parts[-1]).rpartition("fatal: ")[2][:200]
