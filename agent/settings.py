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
from urllib.parse import urlsplit

from attrs import field, frozen

from agent import images
from agent.executors import docker_spec, slurm_options
from common.environ import Environ
from common.logs import FORMATS, LEVELS
from common.protocol import Egress, OnLoss

EXECUTORS: Final = ("sandbox", "docker", "slurm", "fake")
LEAVE: Final = "leave"
"""On SIGTERM jobs carry on without the agent, which finds them at its next start."""
HAND_BACK: Final = "hand_back"
"""On SIGTERM jobs are stopped and given back to the queue."""

_AGENT_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BACKEND: Final = re.compile(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?")


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
    sample_interval: float
    """Between two samples of a job's use of CPU and memory."""
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
    docker: docker_spec.DockerSettings
    """Which container engine the executor `docker` uses, and how."""
    slurm: slurm_options.Options
    """Where and how the executor `slurm` submits jobs."""
    db_env: Mapping[str, str] = field(repr=False)
    """Environment of jobs that may use the database, and of no others."""
    log_level: str
    log_format: str
    on_loss: OnLoss | None
    """What becomes of this agent's jobs once it is lost; None for what the executor declares."""
    exit_mode: str
    """What SIGTERM means for running jobs: `leave` or `hand_back`."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every value that must never be seen in a log."""
        found = (self.token, self.private_repo_access_token, *self.db_env.values())
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
    limit = environ.number("RAP_JOB_TIME_LIMIT", 0)
    agent_id = _agent_id(environ)
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
        job_time_limit=limit or None,
        sample_interval=environ.number("STATS_POLL_INTERVAL", 10, least=0.05),
        log_limit=environ.integer("RAP_LOG_BYTES", 1024**2),
        poll_seconds=environ.number("RAP_POLL_SECONDS", 20, most=300),
        sandbox_images=_sandbox_images(environ),
        sandbox_network=environ.flag("RAP_SANDBOX_NETWORK"),
        allow_unisolated=environ.flag("RAP_ALLOW_UNISOLATED"),
        docker=docker_spec.read_settings(environ, agent_id),
        slurm=slurm_options.read(environ),
        db_env=_db_env(environ),
        log_level=environ.choice("LOGLEVEL", "info", LEVELS),
        log_format=environ.choice("RAP_LOG_FORMAT", "json", FORMATS),
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
    """`status` alone, `open` alone, or any of `+metrics,+logs,+outputs`.

    :raises ValueError: another word.
    """
    words = {word.strip().removeprefix("+") for word in raw.split(",")} - {""}
    unknown = words - {"status", "metrics", "logs", "outputs", "open"}
    if unknown or not words:
        raise ValueError("is not made of status, +metrics, +logs, +outputs and open")
    everything = "open" in words
    return Egress(
        metrics=everything or "metrics" in words,
        logs=everything or "logs" in words,
        outputs=everything or "outputs" in words,
    )


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
