"""What tables and sentences look like: numbers with their nouns, lists on terminals of any width."""

import io
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cli import report

HEADERS = ("Job", "Workspace", "State", "Agent", "By")
ROWS = [
    ("aaaaaaaaaaaaaaaa", "long-covid", "pending: waiting_on_workers", "tpp-node-2", "alice"),
    ("bbbbbbbbbbbbbbbb", "study", "running: executing", "", "bob"),
]
SPARE = ("By", "Agent")


def printed(width: int, *, terminal: bool = True) -> str:
    """The list as a terminal of `width` columns shows it."""
    console = Console(width=width, file=io.StringIO(), force_terminal=terminal, color_system=None, highlight=False)
    report.print_list(console, HEADERS, ROWS, spare=SPARE)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_wide_terminal_has_everything() -> None:
    text = printed(120)
    assert text.splitlines()[0].split() == [*HEADERS]
    assert "pending: waiting_on_workers" in text
    assert "No room" not in text


@pytest.mark.parametrize(
    ("width", "missing", "kept"),
    [(72, [], ["Agent", "By"]), (60, ["By"], ["Agent"]), (48, ["By", "Agent"], ["State"])],
)
def test_a_narrow_one_does_without_columns_rather_than_with_slivers(
    width: int, missing: list[str], kept: list[str]
) -> None:
    text = printed(width)
    header = text.splitlines()[0].split()
    assert [name for name in SPARE if name not in header] == missing
    assert set(kept) <= set(header)
    assert ("No room for: " + ", ".join(missing) in text) == bool(missing)
    assert {"aaaaaaaaaaaaaaaa", "long-covid", "waiting_on_workers"} <= set(text.split())
    assert max(map(len, text.splitlines())) <= width


@given(st.integers(20, 200))
def test_an_id_is_never_broken(width: int) -> None:
    assert "aaaaaaaaaaaaaaaa" in printed(width)


def test_a_pipe_gets_every_column() -> None:
    assert printed(48, terminal=False).count("No room") == 0
    assert "By" in printed(48, terminal=False)


def test_what_steers_a_terminal_is_spelt_out() -> None:
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
    report.print_list(console, ("A",), [("\x1b[2J",)])
    assert isinstance(console.file, io.StringIO)
    assert "\x1b[2J" not in console.file.getvalue()


def test_numbers_have_their_nouns() -> None:
    said = [report.count(0, "job"), report.count(1, "job"), report.count(2, "entry", "entries")]
    assert said == ["0 jobs", "1 job", "2 entries"]


def test_how_long_ago() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert report.ago((now - timedelta(seconds=75)).isoformat(), now) == "1m 15s ago"
    assert report.ago(None, now) == "never"
