"""Where spans go: OpenTelemetry's standard variables, as far as they say something to a controller.

Reference section 6: without an endpoint, headers alone switch the export on, to the place that upstream exports to.
"""

import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import unquote, urlsplit

from attrs import field, frozen

from common.environ import Environ

T = TypeVar("T")

LONGEST_TIMEOUT: Final = 20.0
"""Seconds: what a controller has taken to export must be dealt with before another one may take it."""
DEFAULT_ENDPOINT: Final = "https://api.honeycomb.io"
_PATH: Final = "/v1/traces"
_NAME_CHARACTERS: Final = frozenset("!#$%&'*+-.^_`|~")


@frozen(kw_only=True)
class TraceSettings:
    """What is exported, and to whom; by default nothing is."""

    endpoint: str | None = None
    """URL of the collector for spans (OTLP over HTTP); None: there is none."""
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    """Sent with every export; their values are secrets."""
    console: bool = False
    """Whether spans are printed to standard output."""
    timeout: float = 10.0
    """Seconds that a collector gets for one answer."""
    delay: float = 5.0
    """Seconds between two looks for what is to be exported."""
    gzip: bool = False
    certificate: Path | None = None
    """CA certificates to trust instead of the system's."""
    client_certificate: Path | None = None
    client_key: Path | None = None
    service_name: str = "jobrunner"
    resource: Mapping[str, str] = field(factory=dict)
    """Attributes besides ours."""

    @property
    def enabled(self) -> bool:
        """Whether anything is exported at all."""
        return self.endpoint is not None or self.console


def read(environ: Environ) -> TraceSettings:
    """Ask `environ` for every setting; faults stay in it."""
    none: dict[str, str] = {}
    headers = _first(environ, "HEADERS", none, headers_in, secret=True)
    endpoint = _endpoint(environ, bool(headers))
    _choice(environ, "PROTOCOL", ("http/protobuf",))
    made = TraceSettings(
        endpoint=endpoint,
        headers=headers,
        console=environ.flag("OTEL_EXPORTER_CONSOLE"),
        timeout=_first(environ, "TIMEOUT", 10.0, _seconds),
        delay=environ.number("OTEL_BSP_SCHEDULE_DELAY", 5000, least=10, most=3_600_000) / 1000,
        gzip=_choice(environ, "COMPRESSION", ("none", "gzip")) == "gzip",
        certificate=_first(environ, "CERTIFICATE", None, Path),
        client_certificate=_first(environ, "CLIENT_CERTIFICATE", None, Path),
        client_key=_first(environ, "CLIENT_KEY", None, Path),
        service_name=environ.text("OTEL_SERVICE_NAME", "jobrunner"),
        resource=environ.converted("OTEL_RESOURCE_ATTRIBUTES", {}, headers_in),
    )
    if environ.flag("OTEL_SDK_DISABLED"):
        return TraceSettings()
    _check_certificates(environ, made)
    return made


def tls(settings: TraceSettings) -> ssl.SSLContext:
    """How to know the collector, and to be known by it.

    :raises OSError, ssl.SSLError: a file cannot be read or used.
    """
    context = ssl.create_default_context(cafile=settings.certificate)
    if settings.client_certificate is not None:
        context.load_cert_chain(settings.client_certificate, settings.client_key)
    return context


def headers_in(raw: str) -> dict[str, str]:
    """`name=value,name=value`, percent-encoded or not; quotes around all of it are taken off (reference section 6).

    :raises ValueError: a part of it is not that; the text is not in the message, since values are secrets.
    """
    text = raw.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    found = {}
    for number, part in enumerate((part for part in text.split(",") if part.strip()), 1):
        name, equals, value = (unquote(each).strip() for each in part.partition("="))
        if not equals or not name or not all(_in_a_name(character) for character in name):
            raise ValueError(f"is not name=value,name=value (see number {number})")
        if not value.isascii() or not value.isprintable():
            raise ValueError(f"has a value that cannot be sent (see number {number})")
        found[name.lower()] = value
    return found


def _in_a_name(character: str) -> bool:
    return character.isascii() and (character.isalnum() or character in _NAME_CHARACTERS)


def _first(environ: Environ, name: str, default: T, convert: Callable[[str], T], *, secret: bool = False) -> T:
    """The variable for spans, or else the one for all that is exported."""
    common: T = environ.converted(f"OTEL_EXPORTER_OTLP_{name}", default, convert, secret=secret)
    return environ.converted(f"OTEL_EXPORTER_OTLP_TRACES_{name}", common, convert, secret=secret)


def _choice(environ: Environ, name: str, choices: tuple[str, ...]) -> str:
    common = environ.choice(f"OTEL_EXPORTER_OTLP_{name}", choices[0], choices)
    return environ.choice(f"OTEL_EXPORTER_OTLP_TRACES_{name}", common, choices)


def _endpoint(environ: Environ, has_headers: bool) -> str | None:
    """The variable for spans as it stands; the common one is a base, which spans have a path under."""
    base: str | None = environ.converted("OTEL_EXPORTER_OTLP_ENDPOINT", None, _url)
    if base is None and has_headers:
        base = DEFAULT_ENDPOINT
    under = None if base is None else base.rstrip("/") + _PATH
    return environ.converted("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", under, _url)


def _url(raw: str) -> str:
    text = raw.strip()
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("is not an http:// or https:// address")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("has more than a host and a path (credentials belong into the headers)")
    return text


def _seconds(raw: str) -> float:
    try:
        seconds = float(raw)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= LONGEST_TIMEOUT:
        raise ValueError(f"is not a number of seconds from 0.01 to {LONGEST_TIMEOUT:g}")
    return seconds


def _check_certificates(environ: Environ, settings: TraceSettings) -> None:
    if settings.client_key is not None and settings.client_certificate is None:
        environ.fault("OTEL_EXPORTER_OTLP_CLIENT_KEY", "is of no use without OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE")
    if settings.certificate is None and settings.client_certificate is None:
        return
    try:
        tls(settings)
    except (OSError, ssl.SSLError) as error:
        name = "OTEL_EXPORTER_OTLP_CERTIFICATE or OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"
        environ.fault(name, f"cannot be used: {error.strerror or error}")
