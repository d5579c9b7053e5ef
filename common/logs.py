"""Logging for both processes: structlog on stderr, a line an event; the libraries' logging goes the same way.

Secrets are kept out twice: values of keys that sound like one are masked, and so is every secret that the
process was started with, and every token of our making, wherever it turns up in a line, a traceback included.
"""

import logging
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Final, TextIO

import orjson
import structlog

from common import tokens

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("json", "console")

MASK: Final = "[redacted]"
_SECRET_KEY: Final = re.compile(r"token|password|secret|authorization|database_url|licen[cs]e|dsn", re.IGNORECASE)
_URL_PASSWORD: Final = re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)")
_SHORTEST: Final = 6
"""Shorter "secrets" are words such as `token`: masking these would only make logs unreadable."""
_DEEPEST: Final = 6


class Redactor:
    """A structlog processor that masks secrets.

    :param secrets: values to mask wherever they occur.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        found = sorted({secret for secret in secrets if len(secret) >= _SHORTEST}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, found))) if found else None

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """The event with every secret masked."""
        for key, value in list(event.items()):
            event[key] = self._value(key, value, _DEEPEST)
        return event

    def text(self, text: str) -> str:
        """`text` with every known secret, every token of our making and every password of a URL masked."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        text = tokens.FORM.sub(MASK, text)
        return _URL_PASSWORD.sub(rf"\1{MASK}", text)

    def _value(self, key: str, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return MASK if value and _SECRET_KEY.search(key) else self.text(value)
        if isinstance(value, bool | int | float | None):
            return value
        if _SECRET_KEY.search(key) or depth == 0:
            return MASK
        if isinstance(value, Mapping):
            return {name: self._value(str(name), inner, depth - 1) for name, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._value("", inner, depth - 1) for inner in value]
        # Anything else is printed by its repr, which may show a secret of its own.
        return self.text(str(value) if isinstance(value, Exception) else repr(value))


def configure(
    level: str = "info", form: str = "json", *, secrets: Iterable[str] = (), stream: TextIO | None = None
) -> None:
    """Send every log line of this process to `stream` (stderr), as `form` says.

    :param level: one of LEVELS; the least that is shown.
    :param form: one of FORMATS.
    :param secrets: values that must never be shown.
    """
    stream = stream or sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        Redactor(secrets),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder(), *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _renderer(form, colours=stream.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # asyncpg and aiohttp tell nothing below WARNING that our own lines do not tell better.
    for name in ("aiohttp.access", "asyncio", "asyncpg", "urllib3", "opentelemetry"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


def _renderer(form: str, *, colours: bool) -> structlog.typing.Processor:
    if form == "console":
        return structlog.dev.ConsoleRenderer(colors=colours)
    return structlog.processors.JSONRenderer(serializer=_to_json)


def _to_json(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
