"""The agent's settings: one frozen object, read from an environment mapping and passed on by hand.

Names that OpenSAFELY's agent uses for the same thing keep their name and meaning (reference section 7.1). All
of them are listed in docs/configuration.md, which a test compares with this module.
"""

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from attrs import field, frozen

from agent import images
from agent.executors.docker import spec as docker_spec
from agent.executors.sandbox import cgroups, seccomp
from agent.executors.slurm import options as slurm_options
from common import quantities
from common.environ import Environ
from common.logs import FORMATS, LEVELS
from common.protocol import OPEN, Egress, Named, OnLoss

EXECUTORS: Final = ("sandbox", "docker", "slurm", "fake")
LEAVE: Final = "leave"
"""On SIGTERM jobs carry on without the agent, which finds them at its next start."""
HAND_BACK: Final = "hand_back"
"""On SIGTERM jobs are stopped and given back to the queue."""

_OUTPUTS: Final = "+outputs"
_LEVELS: Final = (Named.MINIMALLY_SENSITIVE, Named.MODERATELY_SENSITIVE)

_AGENT_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BACKEND: Final = re.compile(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?")
_SHORTEST_PASSWORD: Final = 6


@frozen(kw_only=True)
class Settings:
    """Everything that an operator can decide about an agent. Times are seconds, sizes bytes."""

    backend: str
    controller_url: str
    """Without a slash at its end."""
    token: str = field(repr=False)
    agent_id: str
    """Must stay the same over restarts: it is how the agent finds its own tasks again."""
    version: str
    executor: str
    slots: int
    """How many jobs run at once."""
    work_dir: Path
    high_privacy_dir: Path
    medium_privacy_dir: Path
    archive_dir: Path
    egress: Egress
    """What may leave the backend beyond states."""
    allow_local_git_repos: bool
    allowed_orgs: tuple[str, ...]
    git_timeout: float
    github_proxy_domain: str
    """Host that stands in for github.com; empty to go there directly."""
    private_repo_access_token: str = field(repr=False)
    job_time_limit: float | None
    """Wall-clock limit of a job; None for none."""
    job_disk_limit: int | None
    """Most bytes that a job may write; None for no limit."""
    disk_reserve: int
    """Bytes that stay free where the volumes lie, or no job is taken; 0 for none."""
    sample_interval: float
    """Between two samples of a job's use of CPU, memory and disk."""
    log_limit: int
    """Characters of one job's log that are pushed, if the egress lets logs out."""
    poll_seconds: float
    """How long a long-poll asks to wait."""
    sandbox_images: str
    """The image table as it was given; empty for the default one. `agent.images` knows its form."""
    sandbox_network: bool
    """Whether jobs that may use the database get the machine's network; all others never have one."""
    allow_unisolated: bool
    """Whether jobs may run without isolation where bubblewrap does not work."""
    sandbox_cgroups: str
    """Limits by control groups: `auto`, `off`, or the group that shall hold those of the jobs."""
    sandbox_seccomp: str
    """The filter of system calls: `auto`, `required` or `off`."""
    docker: docker_spec.DockerSettings
    """Which container engine the executor `docker` uses, and how."""
    slurm: slurm_options.Options
    """Where and how the executor `slurm` submits jobs."""
    dummy_data: bool
    """Whether the backend has dummy data only: there is no database then, and no job gets a secret."""
    db_env: Mapping[str, str] = field(repr=False)
    """Environment of jobs that may use the database, and of no others; empty where there are dummy data only."""
    log_level: str
    log_format: str
    on_loss: OnLoss | None
    """What becomes of this agent's jobs once it is lost; None for what the executor declares."""
    exit_mode: str
    """What SIGTERM means for running jobs: `leave` or `hand_back`."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every value that must never be seen in a log."""
        passwords = _passwords(self.db_env.get("DATABASE_URL", ""))
        found = (self.token, self.private_repo_access_token, *self.db_env.values(), *passwords)
        return tuple(secret for secret in found if secret)


@frozen(kw_only=True)
class Folders:
    """Where an agent keeps things."""

    work: Path
    high: Path
    medium: Path
    archive: Path


def folders(values: Mapping[str, str]) -> Folders:
    """The folders alone, for `rap workspace`.

    :raises ConfigurationError: with every fault in them.
    """
    environ = Environ(values)
    found = _folders(environ)
    environ.finish()
    return found


def from_environ(values: Mapping[str, str]) -> Settings:
    """The settings that an environment describes.

    :raises ConfigurationError: with every fault in it.
    """
    environ = Environ(values)
    settings = read(environ)
    environ.finish()
    return settings


def read(environ: Environ) -> Settings:
    """Ask `environ` for every setting; faults stay in it until its `finish`."""
    places = _folders(environ)
    agent_id = _agent_id(environ)
    dummy_data = environ.flag("USING_DUMMY_DATA_BACKEND")
    return Settings(
        backend=_backend(environ),
        controller_url=_controller_url(environ),
        token=_token(environ),
        agent_id=agent_id,
        version=environ.text("VERSION", "unknown"),
        executor=environ.choice("RAP_EXECUTOR", "sandbox", EXECUTORS),
        slots=environ.integer("RAP_AGENT_SLOTS", max(2, os.cpu_count() or 2), least=1, most=10_000),
        work_dir=places.work,
        high_privacy_dir=places.high,
        medium_privacy_dir=places.medium,
        archive_dir=places.archive,
        egress=environ.converted("RAP_EGRESS", Egress(), parse_egress),
        allow_local_git_repos=environ.flag("ALLOW_LOCAL_GIT_REPOS"),
        allowed_orgs=environ.words("ALLOWED_GITHUB_ORGS", ("opensafely", "opensafely-actions")),
        git_timeout=environ.number("RAP_GIT_TIMEOUT", 60, least=1),
        github_proxy_domain=environ.text("GITHUB_PROXY_DOMAIN"),
        private_repo_access_token=environ.text("PRIVATE_REPO_ACCESS_TOKEN"),
        job_time_limit=environ.converted("RAP_JOB_TIME_LIMIT", None, quantities.time_limit),
        job_disk_limit=environ.converted("RAP_JOB_DISK_LIMIT", 0, _size) or None,
        disk_reserve=environ.converted("RAP_DISK_RESERVE", 1 << 30, _size),
        sample_interval=environ.number("STATS_POLL_INTERVAL", 10, least=0.05),
        log_limit=environ.integer("RAP_LOG_BYTES", 1024**2),
        poll_seconds=environ.number("RAP_POLL_SECONDS", 20, most=300),
        sandbox_images=_sandbox_images(environ),
        sandbox_network=environ.flag("RAP_SANDBOX_NETWORK"),
        allow_unisolated=environ.flag("RAP_ALLOW_UNISOLATED"),
        sandbox_cgroups=environ.converted(cgroups.SETTING, cgroups.AUTO, cgroups.parse),
        sandbox_seccomp=environ.choice(seccomp.SETTING, seccomp.AUTO, seccomp.CHOICES),
        docker=docker_spec.read_settings(environ, agent_id, dummy_data=dummy_data),
        slurm=slurm_options.read(environ),
        dummy_data=dummy_data,
        db_env={} if dummy_data else _db_env(environ),
        log_level=environ.choice("LOGLEVEL", "info", LEVELS),
        log_format=environ.choice("RAP_LOG_FORMAT", "auto", FORMATS),
        on_loss=environ.converted("RAP_ON_LOSS", None, _on_loss),
        exit_mode=environ.choice("RAP_AGENT_EXIT", LEAVE, (LEAVE, HAND_BACK)),
    )


def _folders(environ: Environ) -> Folders:
    work = environ.folder("WORKDIR", Path("workdir"))
    high = environ.folder("HIGH_PRIVACY_STORAGE_BASE", work / "high_privacy")
    return Folders(
        work=work,
        high=high,
        medium=environ.folder("MEDIUM_PRIVACY_STORAGE_BASE", work / "medium_privacy"),
        archive=environ.folder("HIGH_PRIVACY_ARCHIVE_DIR", high / "archives"),
    )


def parse_egress(raw: str) -> Egress:
    """`open`, or any of `status`, `+metrics`, `+logs` and `+outputs:<level>[:reviewed]`, in any order.

    :raises ValueError: another word, no level or one that never leaves, or two policies for outputs.
    """
    words = {word.strip() for word in raw.split(",")} - {""}
    if words == {"open"}:
        return OPEN
    levels = {word for word in words if word.partition(":")[0] == _OUTPUTS}
    if not words or words - levels - {"status", "+metrics", "+logs"}:
        raise ValueError(f"is not made of status, +metrics, +logs and {_OUTPUTS}:<level>[:reviewed]; nor is it open")
    if len(levels) > 1:
        raise ValueError(f"has more than one {_OUTPUTS}")
    outputs, reviewed = _parse_outputs(next(iter(levels), ""))
    return Egress(metrics="+metrics" in words, logs="+logs" in words, outputs=outputs, reviewed=reviewed)


def _parse_outputs(word: str) -> tuple[Named, bool]:
    """Which outputs `+outputs:<level>[:reviewed]` names, and whether only after a review."""
    if not word:
        return Named.NONE, False
    _, _, rest = word.partition(":")
    level, colon, review = rest.partition(":")
    if level == "highly_sensitive":
        raise ValueError("names a level that never leaves a backend: highly_sensitive")
    if level not in _LEVELS or (colon and review != "reviewed"):
        allowed = " or ".join(f"{_OUTPUTS}:{each}" for each in _LEVELS)
        raise ValueError(f"must say which outputs: {allowed}, each also with :reviewed behind it")
    return Named(level), bool(colon)


def _size(raw: str) -> int:
    """Bytes, in the form that memory limits have; 0 as well."""
    if raw.strip() == "0":
        return 0
    try:
        return quantities.memory(raw)
    except ValueError:
        raise ValueError("is neither 0 nor a size such as 10G, 512m or a number of bytes") from None


def _on_loss(raw: str) -> OnLoss | None:
    try:
        return OnLoss(raw.strip().lower())
    except ValueError as error:
        raise ValueError(f"is neither {' nor '.join(OnLoss)}") from error


def _backend(environ: Environ) -> str:
    backend = environ.required("BACKEND", "the name of the backend that this agent serves")
    if backend and not _BACKEND.fullmatch(backend):
        environ.fault("BACKEND", f"is {backend!r}, which is not made of a-z, 0-9, - and _")
    return backend


def _controller_url(environ: Environ) -> str:
    name = "RAP_CONTROLLER_URL"
    url = environ.given(name)
    upstream = environ.given("CONTROLLER_TASK_API_ENDPOINT")
    if url is None:
        if upstream is None:
            environ.fault(name, "must be set to the controller's address, https://controller.example.org")
            return ""
        name, url = "CONTROLLER_TASK_API_ENDPOINT", upstream
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        environ.fault(name, "has a value that is not an http:// or https:// address")
    elif parts.username or parts.password or parts.query or parts.fragment:
        environ.fault(name, "has a value with more in it than scheme, host, port and path")
    return url.rstrip("/")


def _token(environ: Environ) -> str:
    name = "CONTROLLER_TASK_API_TOKEN"
    token = environ.required(name, "the token that the controller has for agents of this backend")
    if not token.isascii() or not token.isprintable():
        environ.fault(name, "has a value that cannot be sent in an HTTP header")
    return token


def _sandbox_images(environ: Environ) -> str:
    text = environ.text(images.SETTING)
    try:
        images.parse_image_table(text)
    except images.ImageTableError as error:
        environ.fault(images.SETTING, f"is no image table: {error}")
    return text


def _agent_id(environ: Environ) -> str:
    def check(raw: str) -> str:
        if not _AGENT_ID.fullmatch(raw):
            raise ValueError("is not made of letters, digits, '.', '-' and '_' (100 at most)")
        return raw

    default = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")[:100]
    return environ.converted("RAP_AGENT_ID", default or "agent", check)


def _passwords(url: str) -> set[str]:
    """The password in a database's address, as it stands there and as it is: drivers tell one without the other.

    Not one so short that it would be found everywhere.
    """
    try:
        password = urlsplit(url).password or ""
    except ValueError:
        return set()
    return {password, unquote(password)} if len(password) >= _SHORTEST_PASSWORD else set()


def _db_env(environ: Environ) -> dict[str, str]:
    """What a database job gets to see (reference section 5.5)."""
    found = {
        "DATABASE_URL": environ.given("DEFAULT_DATABASE_URL"),
        "TEMP_DATABASE_NAME": environ.given("TEMP_DATABASE_NAME"),
        "PRESTO_TLS_CERT": environ.given("PRESTO_TLS_CERT"),
        "PRESTO_TLS_KEY": environ.given("PRESTO_TLS_KEY"),
        "EMIS_ORGANISATION_HASH": environ.given("EMIS_ORGANISATION_HASH"),
    }
    for one, other in (("PRESTO_TLS_CERT", "PRESTO_TLS_KEY"), ("PRESTO_TLS_KEY", "PRESTO_TLS_CERT")):
        if found[one] and not found[other]:
            environ.fault(other, f"must be set too, since {one} is")
    return {name: value for name, value in found.items() if value is not None}
