"""What the Docker Engine is told about a run: pure, so that every flag can be looked at in a test.

The facts are those of reference section 5.5. What differs: a container is named for its task, not its job, so that two
attempts at one job are never taken for each other; it begins with the same `os-job-<job id>`.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from attrs import frozen

from agent.executors.base import HOME, OPEN_FILES, PROCESSES, ExecutorError, Run
from agent.executors.docker import profile
from common.environ import Environ

DEFAULT_HOST: Final = "unix:///var/run/docker.sock"
DEFAULT_REGISTRY: Final = "ghcr.io/opensafely-core"
DEFAULT_NETWORK: Final = "jobrunner-db"
LEAST_MEMORY: Final = 6 << 20
"""Bytes. Docker refuses less; with Podman the container's own start would fail, with words about its cgroup."""
NOWHERE: Final = "192.0.2.0"
"""A name server that does not exist (RFC 5737): a database job may resolve no name but the database's."""
TASK: Final = "org.rap-controller.task"
AGENT: Final = "org.rap-controller.agent"
MARKS: Final = ("job-runner", "jobrunner-local", "workspace", "action", TASK, AGENT)
"""Every label that this executor sets; all others of a container are its image's."""

_HOST: Final = re.compile(r"(unix:///.+|tcp://[^/]+|https?://[^/]+)/?")
_PROXY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_/-]*[A-Za-z0-9]")
_NETWORK: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SPECIAL_NETWORKS: Final = frozenset({"host"})
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@+-]*(/[A-Za-z0-9][A-Za-z0-9_.:@+-]*)*")
"""What all names of images look like. The engine is told them in the paths of its API, where others lead elsewhere."""
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_LEAST_CPUS: Final = 0.01


@frozen(kw_only=True)
class DockerSettings:
    """What an operator decides about containers."""

    agent_id: str
    """Whose containers these are: several agents may share an engine."""
    host: str = DEFAULT_HOST
    user: str = "65534:65534"
    """`uid:gid` of every job."""
    registry: str = DEFAULT_REGISTRY
    allowed_images: tuple[str, ...] = ()
    """Image names, or beginnings of them, that may run beside those of `registry`."""
    proxy: str = ""
    """Host that stands in for the registry's when images are pulled; empty to go there directly."""
    pull_seconds: float = 1200.0
    database_network: str = DEFAULT_NETWORK
    dummy_data: bool = False
    """Whether there is no database, so that database jobs are in the engine's default network (section 5.5)."""
    host_volume_dir: Path | None = None
    """Where the engine sees the folder of volumes, if that differs from where the agent does."""
    seccomp: str = profile.OWN
    """One of `profile.CHOICES`: whose filter of system calls containers have."""


def read_settings(environ: Environ, agent_id: str, *, dummy_data: bool = False) -> DockerSettings:
    """Ask `environ` for the settings; faults stay in it until its `finish`."""
    default = environ.converted("DOCKER_HOST", DEFAULT_HOST, _host)
    user = environ.integer("DOCKER_USER_ID", os.getuid())
    group = environ.integer("DOCKER_GROUP_ID", os.getgid())
    given = environ.given("DOCKER_HOST_VOLUME_DIR")
    if given is not None and not given.startswith("/"):
        environ.fault("DOCKER_HOST_VOLUME_DIR", "is no absolute path, as the engine needs it")
    return DockerSettings(
        agent_id=agent_id,
        host=environ.converted("RAP_DOCKER_HOST", default, _host),
        user=f"{user}:{group}",
        registry=environ.text("DOCKER_REGISTRY", DEFAULT_REGISTRY),
        allowed_images=environ.words("RAP_ALLOWED_IMAGES"),
        proxy=environ.converted("DOCKER_PROXY", "", _proxy),
        pull_seconds=environ.number("IMAGE_PULL_TIMEOUT", 1200, least=1),
        database_network=environ.converted("DATABASE_ACCESS_NETWORK", DEFAULT_NETWORK, _network_name),
        dummy_data=dummy_data,
        host_volume_dir=Path(given) if given else None,
        seccomp=environ.choice(profile.SETTING, profile.OWN, profile.CHOICES),
    )


def _host(raw: str) -> str:
    if not _HOST.fullmatch(raw):
        raise ValueError("is no address of the form unix:///path, tcp://host:port or https://host:port")
    return raw if raw.startswith("unix://") else raw.rstrip("/")


def _proxy(raw: str) -> str:
    if not _PROXY.fullmatch(raw) or "://" in raw:
        raise ValueError("is no host of a registry, as it stands in the name of an image")
    return raw


def _network_name(raw: str) -> str:
    if not _NETWORK.fullmatch(raw) or raw in _SPECIAL_NETWORKS:
        raise ValueError("is no name of a network that is for the database alone")
    return raw


def container_name(run: Run) -> str:
    """The container's name: `os-job-<job id>-<attempt>`, since a task's id begins with its job's."""
    return f"os-job-{run.task_id}"


def check_allowed(image: str, settings: DockerSettings) -> None:
    """Refuse an image that does not come from where the operator lets images come from.

    :raises ExecutorError: fatal, naming the image and the settings.
    """
    if image and not _IMAGE.fullmatch(image):
        raise ExecutorError(f"Image {image!r} is not an image's name", fatal=True)
    for allowed in (settings.registry, *settings.allowed_images):
        entry = allowed.rstrip("/")
        if entry and image.startswith(entry) and (len(image) == len(entry) or image[len(entry)] in "/:@"):
            return
    raise ExecutorError(
        f"Image '{image}' is not allowed: it is neither from {settings.registry} (DOCKER_REGISTRY) "
        "nor named by RAP_ALLOWED_IMAGES",
        fatal=True,
    )


def references(run: Run, settings: DockerSettings) -> tuple[str, ...]:
    """The names under which the engine may have the run's image; the last one is the one to pull.

    With a digest the tag is left out: the digest alone decides.

    :raises ExecutorError: the digest is malformed.
    """
    image = run.image
    if run.image_sha is not None:
        if not _DIGEST.fullmatch(run.image_sha):
            raise ExecutorError(f"Image '{image}' has a malformed digest {run.image_sha!r}", fatal=True)
        image = f"{_untagged(image)}@{run.image_sha}"
    if not settings.proxy:
        return (image,)
    host, slash, rest = image.partition("/")
    # A first part without a dot or a port is no host: `python:v2`, `library/python`.
    proxied = f"{settings.proxy}/{rest if slash and ('.' in host or ':' in host or host == 'localhost') else image}"
    return (image, proxied)


def _untagged(image: str) -> str:
    name = image.partition("@")[0]
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition(':')[0]}"


def check_words(run: Run) -> None:
    """Refuse what no process can be given.

    :raises ExecutorError: fatal, naming the variable or the limit; values are secrets.
    """
    for name, value in run.env.items():
        if not name or "=" in name or "\0" in name + value:
            raise ExecutorError(f"Environment variable {name!r} has a malformed name or value", fatal=True)
    if any("\0" in argument for argument in run.args):
        raise ExecutorError("An argument of the command contains a NUL character", fatal=True)
    if run.limits.memory_bytes < LEAST_MEMORY:
        raise ExecutorError(
            f"Memory limit of {run.limits.memory_bytes} bytes is below the {LEAST_MEMORY >> 20} MiB that a container "
            "needs (<BACKEND>_JOB_MEMORY_LIMIT of the controller)",
            fatal=True,
        )


def database_host(run: Run) -> str | None:
    """The host that a database job has to reach: the one in its DATABASE_URL; None if there is none.

    :raises ExecutorError: the address cannot be read; its text stays out of the error, it has a password in it.
    """
    url = run.env.get("DATABASE_URL")
    if not run.network or not url:
        return None
    try:
        return urlsplit(url).hostname
    except ValueError:
        raise ExecutorError("DEFAULT_DATABASE_URL of the agent is not an address with a host", fatal=False) from None


def container_body(
    run: Run,
    settings: DockerSettings,
    image: str,
    *,
    host_cpus: int,
    podman: bool = False,
    extra_hosts: Mapping[str, str] | None = None,
    seccomp: str | None = None,
) -> dict[str, Any]:
    """The body of the request that creates the run's container.

    :param image: a name under which the engine has the image.
    :param host_cpus: CPUs of the engine's machine: it refuses to promise more.
    :param podman: whether Podman answers, which has other log drivers.
    :param extra_hosts: addresses of the hosts that a database job may know by name.
    :param seccomp: a filter of system calls as the engine takes it (JSON; Podman: a path); None for the engine's own.
    """
    host_config = _host_config(run, settings, host_cpus, podman)
    if seccomp is not None:
        host_config["SecurityOpt"].append(f"seccomp={seccomp}")
    return {
        "Image": image,
        "Cmd": list(run.args),
        "Env": [f"{name}={value}" for name, value in (HOME | dict(run.env)).items()],
        "User": settings.user,
        "WorkingDir": "/workspace",
        "Labels": labels(run, settings),
        "Tty": False,
        "OpenStdin": False,
        "NetworkDisabled": False,
        "HostConfig": host_config | _network(run, settings, extra_hosts or {}),
    }


def labels(run: Run, settings: DockerSettings) -> dict[str, str]:
    """The container's own labels."""
    return {
        "job-runner": "",
        "jobrunner-local": "",
        "workspace": run.workspace,
        "action": run.action,
        TASK: run.task_id,
        AGENT: settings.agent_id,
    }


def engine_path(run: Run, settings: DockerSettings, name: str) -> Path:
    """Where the engine sees what lies under this name beside the run's volume."""
    folder = run.volume.parent if settings.host_volume_dir is None else settings.host_volume_dir
    return (folder / name).absolute()


def _host_config(run: Run, settings: DockerSettings, host_cpus: int, podman: bool) -> dict[str, Any]:
    cpus = max(_LEAST_CPUS, min(run.limits.cpu_count, float(host_cpus)))
    return {
        "Init": True,
        "AutoRemove": False,
        "RestartPolicy": {"Name": "no"},
        "CapDrop": ["ALL"],
        "Privileged": False,
        "SecurityOpt": ["no-new-privileges"],
        "IpcMode": "private",
        "NanoCpus": int(cpus * 1e9),
        "Memory": run.limits.memory_bytes,
        "MemorySwap": run.limits.memory_bytes,  # memory and swap together: no swap
        "PidsLimit": PROCESSES,
        "Ulimits": [{"Name": name, "Soft": most, "Hard": most} for name, most in _ulimits(run, podman).items()],
        "Mounts": [
            {
                "Type": "bind",
                "Source": str(engine_path(run, settings, run.volume.name)),
                "Target": "/workspace",
                "ReadOnly": False,
            }
        ],
        "LogConfig": _log_config(podman),
    }


def _ulimits(run: Run, podman: bool) -> dict[str, int]:
    limits = {"core": 0, "nofile": OPEN_FILES}
    if run.limits.disk_bytes is not None:
        limits["fsize"] = run.limits.disk_bytes  # of each file; all together are the agent's to look at
    # Podman sets one of its own where none is given, higher than a root without CAP_SYS_RESOURCE may go. It counts
    # all processes of the user; the bound on one job's is PidsLimit.
    return limits | {"nproc": 32 * PROCESSES} if podman else limits


def _log_config(podman: bool) -> dict[str, Any]:
    if podman:
        return {"Type": "k8s-file", "Config": {"max-size": "1g"}}
    return {"Type": "local", "Config": {"max-size": "20m", "max-file": "200", "compress": "true"}}


def _network(run: Run, settings: DockerSettings, extra_hosts: Mapping[str, str]) -> dict[str, Any]:
    if not run.network:
        return {"NetworkMode": "none"}
    if settings.dummy_data:
        return {}
    return {
        "NetworkMode": settings.database_network,
        "Dns": [NOWHERE],
        "ExtraHosts": [f"{name}:{address}" for name, address in extra_hosts.items()],
    }
