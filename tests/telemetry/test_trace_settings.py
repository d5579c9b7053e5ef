"""OpenTelemetry's standard variables: what each becomes, and what is refused without showing a secret."""

import subprocess
from pathlib import Path

import pytest

from common.environ import ConfigurationError, Environ
from controller import settings as controller
from controller.trace_settings import TraceSettings, headers_in, read, tls

DATABASE = {"RAP_DATABASE_URL": "postgresql://db/rap"}


def of(**values: str) -> TraceSettings:
    environ = Environ(values)
    made = read(environ)
    environ.finish()
    return made


def refused(**values: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        of(**values)
    return "\n".join(caught.value.faults)


def test_by_default_nothing_is_exported() -> None:
    assert of() == TraceSettings()
    assert not of(OTEL_SERVICE_NAME="x", OTEL_EXPORTER_OTLP_TIMEOUT="3").enabled
    assert controller.from_environ(DATABASE).traces == TraceSettings()


@pytest.mark.parametrize(
    ("values", "endpoint"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c/base/"}, "https://c/base/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/mine"}, "http://c/mine"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b/x"}, "http://b/x"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "a=b"}, "https://api.honeycomb.io/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_where_spans_go(values: dict[str, str], endpoint: str | None) -> None:
    """Reference section 6: headers alone switch the export on."""
    assert of(**values).endpoint == endpoint


@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_quotes_around_headers_are_taken_off(quote: str) -> None:
    """Reference section 6."""
    assert headers_in(f"{quote}X-Team=a%20b, x-more=c=d,{quote}") == {"x-team": "a b", "x-more": "c=d"}


def test_headers_of_spans_go_before_the_common_ones() -> None:
    found = of(OTEL_EXPORTER_OTLP_HEADERS="a=common", OTEL_EXPORTER_OTLP_TRACES_HEADERS="a=mine")
    assert found.headers == {"a": "mine"}


@pytest.mark.parametrize("raw", ["my-secret", "a=my-secret,=my-secret", "a b=my-secret", "a=my-secret%0d%0ax: y"])
def test_faulty_headers_are_refused_without_showing_them(raw: str) -> None:
    told = refused(OTEL_EXPORTER_OTLP_HEADERS=raw)
    assert told.startswith("OTEL_EXPORTER_OTLP_HEADERS has a value that")
    assert "my-secret" not in told


def test_headers_are_secrets() -> None:
    settings = controller.from_environ(DATABASE | {"OTEL_EXPORTER_OTLP_HEADERS": "x-team=my-secret"})
    assert "my-secret" in settings.secrets
    assert "my-secret" not in repr(settings)


@pytest.mark.parametrize(
    "values",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:password@collector"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "ftp://collector/x"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "0"},
        {"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "3600"},
        {"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"},
        {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere/at/all"},
        {"OTEL_EXPORTER_OTLP_CLIENT_KEY": "/nowhere/at/all"},
        {"OTEL_BSP_SCHEDULE_DELAY": "1"},
        {"OTEL_RESOURCE_ATTRIBUTES": "nonsense"},
    ],
    ids=lambda values: next(iter(values.items()))[0],
)
def test_what_cannot_be_used_is_named(values: dict[str, str]) -> None:
    assert next(iter(values)) in refused(**values)


def test_the_rest() -> None:
    found = of(
        OTEL_EXPORTER_OTLP_TIMEOUT="2.5",
        OTEL_EXPORTER_OTLP_TRACES_COMPRESSION="gzip",
        OTEL_BSP_SCHEDULE_DELAY="250",
        OTEL_SERVICE_NAME="rap",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment=lab",
        OTEL_EXPORTER_CONSOLE="1",
    )
    assert (found.timeout, found.gzip, found.delay, found.service_name) == (2.5, True, 0.25, "rap")
    assert (found.resource, found.console, found.enabled) == ({"deployment.environment": "lab"}, True, True)


def test_certificates_are_read_at_the_start(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=collector", "-days", "1"]
    subprocess.run([*made, *names], check=True, capture_output=True)
    found = of(
        OTEL_EXPORTER_OTLP_CERTIFICATE=str(certificate),
        OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=str(certificate),
        OTEL_EXPORTER_OTLP_CLIENT_KEY=str(key),
    )
    assert len(tls(found).get_ca_certs()) == 1
