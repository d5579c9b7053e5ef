"""The controller's settings: one frozen object, read from an environment mapping and passed on by hand.

Names that OpenSAFELY's controller uses for the same thing keep their name and meaning (reference section
7.1). All of them are listed in docs/configuration.md, which a test compares with this module.
"""

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from attrs import field, frozen

from common import quantities
from common.environ import Environ
from common.logs import FORMATS, LEVELS
from controller.core.outputs import LEVEL4_FILE_TYPES
from controller.core.resources import LEAST_CPUS, JobLimits
from controller.core.retry import DEFAULT as DEFAULT_RETRY
from controller.core.retry import RetryPolicy
from controller.core.weights import InvalidWeights, Weights
from controller.core.weights import parse as parse_weights
from controller.trace_settings import TraceSettings
from controller.trace_settings import read as read_traces

_SHORTEST_TOKEN: Final = 16
"""Characters of a token for the metrics."""
_SLUG: Final = re.compile(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?")
_DAY: Final = 24 * 3600.0
_CHECKED: Final = "tpp"
"""The backend whose database is checked where the settings do not say which (reference section 3.7)."""
_MONTH: Final = re.compile(r"(19|20)[0-9]{2}(0[1-9]|1[0-2])")
_UPSTREAM_TOKEN: Final = "token"  # noqa: S105  upstream's well-known default, refused below


@frozen(kw_only=True)
class BackendSettings:
    """One backend: who may use it and how much may run there."""

    slug: str
    client_tokens: tuple[str, ...] = field(repr=False)
    """Whoever holds one may read and run everything of this backend; none means that nobody may."""
    operator_tokens: tuple[str, ...] = field(repr=False)
    """Whoever holds one may do the same and operate the backend: modes, limits, jobs, agents, pruning, tokens."""
    agent_token: str | None = field(repr=False)
    """What agents show; None admits no agent."""
    max_workers: float
    """Sum of the weights of jobs without database access that run at once (reference section 3.5)."""
    max_db_workers: float
    job_limits: JobLimits
    """What one job may use of which nothing else is said."""
    job_most: JobLimits
    """What an author may ask for one job, if `job_resources` lets authors ask."""
    weights_file: Path | None
    weights: Weights
    """What the file says (`controller.core.weights`); without one every job weighs 1."""


@frozen(kw_only=True)
class CheckSettings:
    """Which databases are asked for their state now and then (reference section 3.7)."""

    status: tuple[str, ...] = ()
    """Backends that are asked whether their database is in maintenance."""
    data: tuple[str, ...] = ()
    """Backends that are asked whether the data in their database are recent."""
    expected_month: str | None = None
    """`YYYYMM`, the month whose hospital activity has to be in the data; set if `data` has any backend."""


@frozen(kw_only=True)
class Settings:
    """Everything that an operator can decide about a controller. Times are seconds, sizes bytes."""

    listen_host: str
    listen_port: int
    metrics_listen: tuple[str, int] | None
    """Host and port where only the metrics are served, besides; None: nowhere."""
    metrics_token: str | None = field(repr=False)
    """What a scraper shows; None: only operators' tokens open the metrics."""
    database_url: str = field(repr=False)
    backends: tuple[BackendSettings, ...]
    checks: CheckSettings
    workdir: Path
    version: str
    allowed_orgs: tuple[str, ...]
    allow_local_git_repos: bool
    github_proxy_domain: str
    """Host that stands in for github.com; empty to go there directly."""
    private_repo_access_token: str = field(repr=False)
    git_timeout: float
    docker_registry: str
    image_digests: str
    """`off` or `registry`: whether a task pins its image by the digest that the registry names."""
    max_body: int
    lease_seconds: float
    """How long a silent agent keeps its tasks."""
    poll_seconds: float
    """The longest wait granted to a long-poll."""
    safety_seconds: float
    """Period of the timer that makes up for lost notifications."""
    retention_days: float
    """After how long what finished is forgotten; 0: never."""
    retry: RetryPolicy
    """What jobs get when the platform fails them."""
    pool_size: int
    level4_max_filesize: int
    level4_max_csv_rows: int
    level4_file_types: tuple[str, ...]
    stata_license: str | None = field(repr=False)
    job_resources: bool
    """Whether actions in project files may ask for `resources`."""
    ehrql_max_join_count: Mapping[str, int]
    """Workspace -> `EHRQL_MAX_JOIN_COUNT` of its database jobs."""
    event_level_projects: tuple[str, ...]
    log_level: str
    log_format: str
    log_bytes: int
    """The most that is stored of one job's log."""
    traces: TraceSettings = field(factory=TraceSettings)
    """Where spans go."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every value that must never be seen in a log."""
        tokens = [token for b in self.backends for token in (*b.client_tokens, *b.operator_tokens, b.agent_token)]
        others = [
            self.private_repo_access_token,
            self.stata_license,
            self.metrics_token,
            *self.traces.headers.values(),
            _password(self.database_url),
        ]
        return tuple(secret for secret in (*tokens, *others) if secret)


def from_environ(values: Mapping[str, str]) -> Settings:
    """The settings that an environment describes.

    :raises ConfigurationError: with every fault in it.
    """
    environ = Environ(values)
    settings = read(environ)
    environ.finish()
    return settings


def database_url(values: Mapping[str, str]) -> str:
    """The database alone, for `rap migrate`.

    :raises ConfigurationError: it is missing or no PostgreSQL URL.
    """
    environ = Environ(values)
    url = _database_url(environ)
    environ.finish()
    return url


def read(environ: Environ) -> Settings:
    """Ask `environ` for every setting; faults stay in it until its `finish`."""
    host, port = environ.converted("RAP_LISTEN", ("0.0.0.0", 8000), _listen)  # noqa: S104  meant for a proxy's use
    backends = _backends(environ)
    metrics_listen, metrics_token = _metrics(environ)
    return Settings(
        listen_host=host,
        listen_port=port,
        metrics_listen=metrics_listen,
        metrics_token=metrics_token,
        database_url=_database_url(environ),
        backends=backends,
        checks=_checks(environ, [backend.slug for backend in backends]),
        workdir=environ.folder("WORKDIR", Path("workdir")),
        version=environ.text("VERSION", "unknown"),
        allowed_orgs=environ.words("ALLOWED_GITHUB_ORGS", ("opensafely", "opensafely-actions")),
        allow_local_git_repos=environ.flag("ALLOW_LOCAL_GIT_REPOS"),
        github_proxy_domain=environ.text("GITHUB_PROXY_DOMAIN"),
        private_repo_access_token=environ.text("PRIVATE_REPO_ACCESS_TOKEN"),
        git_timeout=environ.number("RAP_GIT_TIMEOUT", 60, least=1),
        docker_registry=environ.text("DOCKER_REGISTRY", "ghcr.io/opensafely-core").rstrip("/"),
        image_digests=environ.choice("RAP_IMAGE_DIGESTS", "off", ("off", "registry")),
        max_body=environ.integer("RAP_MAX_BODY", 2_621_440, least=1024, most=1024**3),
        lease_seconds=environ.number("RAP_LEASE_SECONDS", 60, least=1),
        poll_seconds=environ.number("RAP_POLL_SECONDS", 20, most=300),
        safety_seconds=environ.number("RAP_SAFETY_SECONDS", 10, least=0.1),
        retention_days=environ.converted("RAP_RETENTION_DAYS", 0.0, _retention),
        retry=_retry(environ),
        pool_size=environ.integer("RAP_POOL_SIZE", 10, least=2, most=1000),
        level4_max_filesize=environ.integer("LEVEL4_MAX_FILESIZE", 16 * 1024**2),
        level4_max_csv_rows=environ.integer("LEVEL4_MAX_CSV_ROWS", 5000),
        level4_file_types=environ.words("LEVEL4_FILE_TYPES", LEVEL4_FILE_TYPES),
        stata_license=environ.given("STATA_LICENSE"),
        job_resources=environ.flag("RAP_JOB_RESOURCES"),
        ehrql_max_join_count=environ.converted("WORKSPACE_EHRQL_MAX_JOIN_COUNT", {}, _join_counts),
        event_level_projects=environ.words("RAP_EVENT_LEVEL_PROJECTS"),
        log_level=environ.choice("LOGLEVEL", "info", LEVELS),
        log_format=environ.choice("RAP_LOG_FORMAT", "auto", FORMATS),
        log_bytes=environ.integer("RAP_LOG_BYTES", 1024**2),
        traces=read_traces(environ),
    )


def read_weights(file: Path) -> Weights:
    """The rules in a weights file.

    :raises ValueError: it cannot be read, or has mistakes; each with its line.
    """
    try:
        return parse_weights(file.read_text())
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    except InvalidWeights as error:
        raise ValueError(f"has mistakes: {error}") from error


def _retry(environ: Environ) -> RetryPolicy:
    first = environ.number("RAP_RETRY_FIRST_SECONDS", DEFAULT_RETRY.first.total_seconds(), most=_DAY)
    longest = environ.number("RAP_RETRY_LONGEST_SECONDS", DEFAULT_RETRY.longest.total_seconds(), most=_DAY)
    if longest < first:
        environ.fault("RAP_RETRY_LONGEST_SECONDS", "is less than RAP_RETRY_FIRST_SECONDS")
    return RetryPolicy(
        limit=environ.integer("RAP_RETRY_LIMIT", DEFAULT_RETRY.limit, least=1, most=1_000_000),
        first=timedelta(seconds=first),
        longest=timedelta(seconds=longest),
    )


def _database_url(environ: Environ) -> str:
    name = "RAP_DATABASE_URL"
    url = environ.required(name, "the PostgreSQL database, postgresql://user:password@host/database")
    if url and not url.startswith(("postgresql://", "postgres://")):
        environ.fault(name, "has a value that does not begin with postgresql://")
    return url


def _password(url: str) -> str | None:
    try:
        return urlsplit(url).password
    except ValueError:
        return None


def _backends(environ: Environ) -> tuple[BackendSettings, ...]:
    slugs = environ.words("BACKENDS", ("test", "tpp", "emis", "ted"))
    allow_default = environ.flag("RAP_ALLOW_DEFAULT_TOKEN")
    ordinary = _job_limits(environ, "DEFAULT_JOB", JobLimits(cpu_count=2, memory_limit="4G"))
    if not slugs:
        environ.fault("BACKENDS", "names no backend")
    prefixes: dict[str, str] = {}
    backends = []
    for slug in slugs:
        prefix = _prefix(slug)
        if not _SLUG.fullmatch(slug):
            environ.fault("BACKENDS", f"has {slug!r}, which is not made of a-z, 0-9, - and _")
            continue
        if prefixes.setdefault(prefix, slug) != slug:
            environ.fault("BACKENDS", f"has {prefixes[prefix]!r} and {slug!r}, whose variables would be the same")
        workers = environ.number(f"{prefix}_MAX_WORKERS", 2 if slug == "test" else 10)
        backends.append(
            BackendSettings(
                slug=slug,
                client_tokens=_token_list(environ, f"{prefix}_CLIENT_TOKENS"),
                operator_tokens=_token_list(environ, f"{prefix}_OPERATOR_TOKENS"),
                agent_token=_agent_token(environ, f"{prefix}_JOB_SERVER_TOKEN", allow_default),
                max_workers=workers,
                max_db_workers=environ.number(f"{prefix}_MAX_DB_WORKERS", workers),
                job_limits=(limits := _job_limits(environ, f"{prefix}_JOB", ordinary)),
                job_most=_job_most(environ, prefix, limits),
                weights_file=environ.converted(f"{prefix}_JOB_WEIGHTS", None, Path),
                weights=environ.converted(f"{prefix}_JOB_WEIGHTS", Weights(), lambda raw: read_weights(Path(raw))),
            )
        )
    return tuple(backends)


def _job_limits(environ: Environ, prefix: str, default: JobLimits) -> JobLimits:
    return JobLimits(
        cpu_count=environ.number(f"{prefix}_CPU_COUNT", default.cpu_count, least=LEAST_CPUS),
        memory_limit=environ.converted(f"{prefix}_MEMORY_LIMIT", default.memory_limit, _memory),
        time_limit=environ.converted(f"{prefix}_TIME_LIMIT", default.time_limit, quantities.time_limit),
    )


def _job_most(environ: Environ, prefix: str, limits: JobLimits) -> JobLimits:
    """The ceilings; without any, authors may only ask for less than every job gets."""
    most = _job_limits(environ, f"{prefix}_JOB_MAX", limits)
    less = {
        "CPU_COUNT": most.cpu_count < limits.cpu_count,
        "MEMORY_LIMIT": quantities.memory(most.memory_limit) < quantities.memory(limits.memory_limit),
        "TIME_LIMIT": most.time_limit is not None
        and (limits.time_limit is None or most.time_limit < limits.time_limit),
    }
    for name in (name for name, is_less in less.items() if is_less):
        environ.fault(f"{prefix}_JOB_MAX_{name}", f"is less than every job gets: see {prefix}_JOB_{name}")
    return most


def _checks(environ: Environ, slugs: Sequence[str]) -> CheckSettings:
    """Without a month there is nothing to compare the data with, so that nothing is asked unless by explicit wish."""
    status_name, data_name = "MAINTENANCE_ENABLED_BACKENDS", "DATA_CHECK_ENABLED_BACKENDS"
    month_name = "DATA_CHECK_HES_EXPECTED_ACTIVITY_MONTH"
    month: str | None = environ.converted(month_name, None, _month)
    data = _checked(environ, data_name, slugs)
    if data and environ.given(data_name) and not environ.given(month_name):
        environ.fault(month_name, f"must be set to the expected month, YYYYMM, since {data_name} is set")
    return CheckSettings(
        status=_checked(environ, status_name, slugs),
        data=data if month else (),
        expected_month=month if data else None,
    )


def _checked(environ: Environ, name: str, slugs: Sequence[str]) -> tuple[str, ...]:
    named = environ.clearable(name)
    if named is None:
        return tuple(slug for slug in slugs if slug == _CHECKED)
    if unknown := [slug for slug in named if slug not in slugs]:
        environ.fault(name, f"has {unknown[0]!r}, which is not among BACKENDS")
    return tuple(slug for slug in named if slug in slugs)


def _month(raw: str) -> str:
    if not _MONTH.fullmatch(raw.strip()):
        raise ValueError("is not a month written YYYYMM, such as 202304")
    return raw.strip()


def _prefix(slug: str) -> str:
    """What the names of a backend's variables begin with."""
    return slug.upper().replace("-", "_")


def _token_list(environ: Environ, name: str) -> tuple[str, ...]:
    """Split at commas and not trimmed, as upstream does."""
    return environ.converted(
        name, (), lambda raw: tuple(_sendable(token) for token in raw.split(",") if token), secret=True
    )


def _agent_token(environ: Environ, name: str, allow_default: bool) -> str | None:
    """Upstream's default opens every backend to whoever has read its source, so it must be asked for."""

    def check(raw: str) -> str:
        if raw == _UPSTREAM_TOKEN and not allow_default:
            raise ValueError("everybody knows (set a random one, or RAP_ALLOW_DEFAULT_TOKEN=true for a test)")
        return _sendable(raw)

    return environ.converted(name, _UPSTREAM_TOKEN if allow_default else None, check, secret=True)


def _sendable(token: str) -> str:
    if not token.isascii() or not token.isprintable():
        raise ValueError("cannot be sent in an HTTP header")
    return token


def _listen(raw: str) -> tuple[str, int]:
    host, colon, port = raw.strip().rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _metrics(environ: Environ) -> tuple[tuple[str, int] | None, str | None]:
    """Without a token only this machine may read them."""
    name = "RAP_METRICS_LISTEN"
    listen: tuple[str, int] | None = environ.converted(name, None, _listen)
    token: str | None = environ.converted("RAP_METRICS_TOKEN", None, _scrape_token, secret=True)
    if listen is not None and token is None and not _is_loopback(listen[0]):
        environ.fault(name, "is an address that others reach: set RAP_METRICS_TOKEN, too, or listen at 127.0.0.1")
    return listen, token


def _scrape_token(raw: str) -> str:
    if len(_sendable(raw)) < _SHORTEST_TOKEN or raw != raw.strip():
        raise ValueError(f"has fewer than {_SHORTEST_TOKEN} characters, or blanks around it")
    return raw


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _retention(raw: str) -> float:
    try:
        days = float(raw)
    except ValueError:
        days = -1.0
    if days != 0 and not 1 <= days <= 36_500:
        raise ValueError("is neither 0 nor a number of days from 1 to 36500")
    return days


def _memory(raw: str) -> str:
    quantities.memory(raw)
    return raw.strip()


def _join_counts(raw: str) -> dict[str, int]:
    try:
        counts = json.loads(raw)
    except ValueError as error:
        raise ValueError("is not JSON") from error
    if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()):
        raise ValueError("is not a JSON object of workspaces and whole numbers")
    return counts
