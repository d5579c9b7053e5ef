"""Logging for both processes: structlog on stderr, a line an event; the libraries' logging goes the same way.

Secrets are kept out twice: values of keys that sound like one are masked, and so is every secret that the
process was started with, and every token of our making, wherever it turns up in a line, a traceback included. Whatever
else stands where a token or a password does (a header, a query, a URL) is masked, too. No line is longer than
`MOST_LINE`, however long what is logged.
"""

import json
import logging
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from itertools import islice
from typing import Any, Final, TextIO
from urllib.parse import quote, unquote

import orjson
import structlog

from common import tokens

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("auto", "json", "console")
"""`auto`: readable on a terminal, JSON elsewhere."""

MASK: Final = "[redacted]"
_SECRET_KEY: Final = re.compile(r"token|password|secret|authorization|database_url|licen[cs]e|dsn", re.IGNORECASE)
_URL_PASSWORD: Final = re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)")
_HEADER: Final = re.compile(
    r"\b((?:proxy-)?authorization|(?:set-)?cookie|x-api-key)"
    r"""(['"]?[ ]?[:=,][ ]?(?:b?['"])?)(?:\w{3,10}[ ]+)?[^\s"',;]+""",
    re.IGNORECASE,
)
_BEARER: Final = re.compile(r"\b(bearer[ ]+)[^\s\"',;]+", re.IGNORECASE)
_PARAMETER: Final = re.compile(
    r"([?&;][\w.-]{0,40}(?:token|secret|passw|api_?key|auth|signature)[\w.-]{0,40}=)[^&;\s\"'#]+", re.IGNORECASE
)
_SHORTEST: Final = 6
"""Shorter "secrets" are words such as `token`: masking these would only make logs unreadable."""
_DEEPEST: Final = 6

MOST_LINE: Final = 64_000
"""Characters of a line."""
MOST_TEXT: Final = 16_000
"""Characters of one value; of a longer one its beginning and its end are shown."""
_HEAD: Final = MOST_TEXT * 2 // 3
_TAIL: Final = MOST_TEXT - _HEAD
_MARGIN: Final = 512
_MOST_ITEMS: Final = 200
_LONGEST_KEY: Final = 100
_SHORT: Final = 500
"""Characters of a value in a line that is too long as a whole."""


class Redactor:
    """A structlog processor that masks secrets.

    :param secrets: values to mask wherever they occur.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets if len(secret) >= _SHORTEST for form in _forms(secret)}
        found = sorted(forms, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, found))) if found else None
        self._margin = max(_MARGIN, len(found[0]) if found else 0)

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """The event with every secret masked."""
        for key, value in list(event.items()):
            event[key] = self._value(key, value, _DEEPEST)
        return event

    def text(self, text: str) -> str:
        """`text` with every secret masked, and cut in its middle if it is too long.

        It is cut first, because masking takes its time; what a cut leaves of a secret is not recognised as one, so
        both ends of the cut are dropped as far as the longest secret could reach.
        """
        if len(text) <= MOST_TEXT:
            return self._mask(text)
        head = self._mask(text[: _HEAD + self._margin])[: -self._margin]
        tail = self._mask(text[-_TAIL - self._margin :])[self._margin :]
        return f"{head} [{len(text) - len(head) - len(tail)} characters are cut here] {tail}"

    def _mask(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(MASK, text)
        # Most values are a word: each pattern is tried only where what it cannot do without is there.
        if tokens.PREFIX in text:
            text = tokens.FORM.sub(MASK, text)
        if " " in text or ":" in text or "=" in text or "," in text:
            text = _HEADER.sub(rf"\1\2{MASK}", text)
            text = _BEARER.sub(rf"\1{MASK}", text)
        if "=" in text:
            text = _PARAMETER.sub(rf"\1{MASK}", text)
        return _URL_PASSWORD.sub(rf"\1{MASK}", text) if "://" in text else text

    def _value(self, key: str, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return MASK if value and _SECRET_KEY.search(key) else self.text(value)
        if isinstance(value, bool | int | float | None):
            return value
        if _SECRET_KEY.search(key) or depth == 0:
            return MASK
        if isinstance(value, Mapping):
            few = islice(value.items(), _MOST_ITEMS)
            return {self._key(name): self._value(str(name), inner, depth - 1) for name, inner in few}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._value("", inner, depth - 1) for inner in islice(value, _MOST_ITEMS)]
        if isinstance(value, bytes | bytearray | memoryview):
            value = bytes(value[:MOST_TEXT])
        # Anything else is printed by its repr, which may show a secret of its own.
        return self.text(str(value) if isinstance(value, Exception) else repr(value))

    def _key(self, name: Any) -> str:
        return self.text(str(name))[:_LONGEST_KEY]


def _forms(secret: str) -> set[str]:
    """The ways in which a secret may be written: as it is, in a URL, in JSON, in a `repr`."""
    return {secret, quote(secret, safe=""), unquote(secret), json.dumps(secret)[1:-1], repr(secret)[1:-1]}


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
                _bounded(_renderer(form, terminal=stream.isatty())),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # asyncpg and aiohttp tell nothing below WARNING that our own lines do not tell better.
    for name in ("aiohttp.access", "asyncio", "asyncpg", "urllib3", "opentelemetry"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("aiohttp.server").addFilter(_without_quotation)
    logging.captureWarnings(capture=True)


def _without_quotation(record: logging.LogRecord) -> bool:
    """What is no HTTP is refused by the library, which quotes it in its log: a header may be in it, or part of one.

    It is the client's fault, too, and no error of ours.
    """
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and type(error).__module__ == "aiohttp.http_exceptions":
        record.msg, record.args, record.exc_info = "request_malformed", (), None
        record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        vars(record)["reason"] = type(error).__name__
    return True


def _renderer(form: str, *, terminal: bool) -> structlog.typing.Processor:
    if form == "console" or (form == "auto" and terminal):
        return structlog.dev.ConsoleRenderer(colors=terminal)
    return structlog.processors.JSONRenderer(serializer=_to_json)


def _bounded(render: structlog.typing.Processor) -> structlog.typing.Processor:
    """`render`, with a line of every event: one that is too long is told in short, and how long it would have been."""

    def render_bounded(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        line = str(render(logger, method, dict(event)))
        if len(line) <= MOST_LINE:
            return line
        short = {
            key[:_LONGEST_KEY]: value[:_SHORT] if isinstance(value, str) else value
            for key, value in islice(event.items(), _MOST_ITEMS // 4)
            if isinstance(value, str | bool | int | float | None)
        }
        return str(render(logger, method, short | {"cut": len(line)}))

    return render_bounded


def _to_json(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
