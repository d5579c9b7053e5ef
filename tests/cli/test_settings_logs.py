"""Log lines: one JSON object each, from structlog and logging alike, and never a secret."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from common import logs, tokens

SECRET = "swordfish-swordfish"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the lines go; logging is as it was afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    loggers = {name: logging.getLogger(name).level for name in ("aiohttp.access", "asyncio", "asyncpg")}
    stream = io.StringIO()
    logs.configure("debug", "json", secrets=[SECRET, "token"], stream=stream)
    yield stream
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in loggers.items():
        logging.getLogger(name).setLevel(before)
    logging.captureWarnings(capture=False)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_level_time_context_and_fields(stream: io.StringIO):
    with structlog.contextvars.bound_contextvars(rap_id="r1"):
        structlog.get_logger().info("job_created", jobs=3)
    (line,) = lines(stream)
    assert line.pop("timestamp")
    assert line == {"event": "job_created", "level": "info", "rap_id": "r1", "jobs": 3}


def test_the_standard_librarys_logging_takes_the_same_way(stream: io.StringIO):
    logging.getLogger("asyncpg.pool").warning("lost %s", "one", extra={"attempt": 2})
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["attempt"]) == ("lost one", "warning", 2)
    logging.getLogger("aiohttp.access").info("GET /")
    assert len(lines(stream)) == 1


def test_a_token_of_our_making_is_masked_though_nobody_told_of_it(stream: io.StringIO):
    planted = tokens.make()
    try:
        raise ValueError(f"no such token: {planted}")
    except ValueError:
        structlog.get_logger().exception("lookup_failed", path=f"/x/{planted}/y", nested={"a": [planted]})
    logging.getLogger("asyncpg").warning("Authorization: Bearer %s", planted)
    assert planted not in stream.getvalue()
    assert stream.getvalue().count(logs.MASK) >= 4
    structlog.get_logger().info("rap_schedule", channel="rap_tokens", workspace="rap_of_an_ordinary_length")
    assert lines(stream)[-1]["workspace"] == "rap_of_an_ordinary_length"


def test_values_of_keys_that_sound_secret_are_masked(stream: io.StringIO):
    structlog.get_logger().info(
        "x", client_token="a", Authorization="b", database_url="c", password={"d": "e"}, nested={"api_token": "f"}
    )
    (line,) = lines(stream)
    for key in ("client_token", "Authorization", "database_url", "password"):
        assert line[key] == logs.MASK
    assert line["nested"] == {"api_token": logs.MASK}


def test_known_secrets_are_masked_wherever_they_are(stream: io.StringIO):
    log = structlog.get_logger()
    log.info(f"asked with {SECRET}", url=f"https://x:{SECRET}@h/", items=[SECRET, 1], error=ValueError(SECRET))
    logging.getLogger("x").warning("%s", SECRET)
    try:
        raise RuntimeError(f"no entry with {SECRET}")
    except RuntimeError:
        log.exception("failed")
    assert SECRET not in stream.getvalue()
    assert "no entry with [redacted]" in stream.getvalue()


def test_passwords_of_urls_are_masked_even_if_unknown(stream: io.StringIO):
    structlog.get_logger().info("connecting to postgresql://rap:unknown@db/rap")
    assert lines(stream)[0]["event"] == f"connecting to postgresql://rap:{logs.MASK}@db/rap"


def test_short_words_are_no_secrets(stream: io.StringIO):
    structlog.get_logger().info("a token was given")
    assert lines(stream)[0]["event"] == "a token was given"


def test_readable_lines(stream: io.StringIO):
    logs.configure("info", "console", stream=stream)
    structlog.get_logger().info("hello", who="you")
    structlog.get_logger().debug("not shown")
    assert "hello" in stream.getvalue()
    assert "who=you" in stream.getvalue()
    assert "not shown" not in stream.getvalue()


class Terminal(io.StringIO):
    """What a person looks at."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("form", "readable"), [("auto", True), ("json", False), ("console", True)])
def test_on_a_terminal_lines_are_for_people_unless_told_otherwise(stream: io.StringIO, form: str, readable: bool):
    terminal = Terminal()
    logs.configure("info", form, stream=terminal)
    structlog.get_logger().info("hello", who="you")
    assert terminal.getvalue().startswith("{") is not readable
    assert not stream.getvalue()


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_no_value_can_carry_a_secret_or_break_the_redactor(value: object):
    redactor = logs.Redactor([SECRET])
    event = redactor(None, "info", {"event": "x", "value": [value, SECRET, {"k": SECRET}]})
    assert SECRET not in repr(event)


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer {}",
        "authorization={}",
        "b'Authorization: {}\\x00'",
        "{{'Authorization': 'Bearer {}'}}",
        "('Authorization', '{}')",
        "Cookie: session={}; other",
        "bearer {}",
        "GET /api/raps?token={}&x=1 HTTP/1.1",
        "https://host/path?a=b&access_token={}",
        "postgresql://rap:{}@db/rap",
    ],
)
def test_what_stands_where_a_secret_does_is_masked_though_nobody_knows_it(stream: io.StringIO, text: str):
    structlog.get_logger().info(text.format("unknown-and-secret"))
    assert "unknown-and-secret" not in stream.getvalue()
    assert logs.MASK in stream.getvalue()


@pytest.mark.parametrize("text", ["No token: send it.", "the author is away", "tasks: 3; keys=4", "see ?a=b&c=d"])
def test_ordinary_sentences_stay_as_they_are(stream: io.StringIO, text: str):
    structlog.get_logger().info(text)
    assert lines(stream)[0]["event"] == text


def test_a_secret_is_masked_in_every_form_that_it_may_take(stream: io.StringIO):
    secret = 'sword"fish\\%40é'
    logs.configure("debug", "json", secrets=[secret], stream=stream)
    structlog.get_logger().info("x", said={secret: 1}, shown=[repr(secret)], error=KeyError(secret))
    logging.getLogger("x").warning("at %s", "https://h/sword%22fish%5C%2540%C3%A9")
    assert "sword" not in stream.getvalue()


@pytest.mark.parametrize("form", logs.FORMATS)
def test_a_line_of_fifty_megabytes_is_cut(stream: io.StringIO, form: str):
    logs.configure("debug", form, secrets=[SECRET], stream=stream)
    huge = "<" + f"é {SECRET} " * (50_000_000 // (len(SECRET) + 3)) + ">"
    structlog.get_logger().info("arrived", header=huge, items=[huge[:20_000]] * 1_000, raw=huge[:1_000_000].encode())
    logging.getLogger("asyncpg").warning("%s", huge)
    try:
        raise ValueError(huge)
    except ValueError:
        structlog.get_logger().exception("failed", rap_id="r1")
    text = stream.getvalue()
    assert len(text) <= 3 * logs.MOST_LINE + 100
    assert "swordfish" not in text
    assert "characters are cut here" in text
    if form != "console":
        arrived, foreign, failed = lines(stream)
        assert (arrived["event"], failed["event"], failed["rap_id"]) == ("arrived", "failed", "r1")
        assert isinstance(arrived["cut"], int)
        assert str(foreign["event"]).endswith(">")
        assert str(failed["exception"]).startswith("Traceback")


@given(st.integers(0, 3_000), st.integers(0, 60))
def test_no_cut_leaves_a_piece_of_a_secret(before: int, between: int):
    text = "x" * before + (SECRET + "." * between) * 2_000
    shown = logs.Redactor([SECRET]).text(text)
    assert len(shown) <= logs.MOST_TEXT + 100
    assert "sword" not in shown
    assert "fish" not in shown
