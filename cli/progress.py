"""Following a RAP until it ends: a table that moves on a terminal, plain lines elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from cli import report
from cli.client import Client

_SHORTEST: Final = 0.2
_LONGEST: Final = 2.0
"""Seconds between two looks: short after a change, longer while nothing happens."""


class _Display(Protocol):
    def show(self, detail: report.Detail) -> None: ...


class _Moving:
    """One table, drawn again and again."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, detail: report.Detail) -> None:
        self._live.update(Group(report.headline(detail), report.jobs_table(detail["jobs"])), refresh=True)


class _Lines:
    """One line for each thing that happened, out of the jobs' histories, so that no stage is missed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, int] = {}

    def show(self, detail: report.Detail) -> None:
        news = []
        for job in detail["jobs"]:
            history = job["history"]
            news += [(change, job) for change in history[self._shown.get(job["id"], 0) :]]
            self._shown[job["id"]] = len(history)
        for change, job in sorted(news, key=lambda pair: str(pair[0]["at"])):
            self._console.print(_line(job, change), soft_wrap=True)


def _line(job: report.Detail, change: report.Detail) -> Text:
    at = datetime.fromisoformat(change["at"]).astimezone().strftime("%H:%M:%S")
    # The stages of a running job have no message of their own.
    words = change["code"] if change["state"] == "running" else report.safe(change["message"]) or change["code"]
    return Text.assemble(
        f"{at} {report.safe(job['action'])}: ",
        report.state_text(change["state"]),
        f" ({' '.join(words.split())})",
    )


@contextmanager
def _display(console: Console) -> Iterator[_Display]:
    if not console.is_terminal:
        yield _Lines(console)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield _Moving(live)


async def follow(client: Client, rap_id: str, console: Console) -> dict[str, Any]:
    """Show a RAP's progress on `console` until all its jobs have ended.

    :returns: what `GET /api/raps/{id}` said last.
    :raises Problem: the controller stays away for longer than the client's patience.
    """
    pause, before = _SHORTEST, None
    with _display(console) as display:
        while True:
            detail = await client.read("raps", rap_id)
            display.show(detail)
            if report.is_finished(detail):
                return detail
            now = [(job["code"], job["attempt"]) for job in detail["jobs"]]
            pause = _SHORTEST if now != before else min(pause * 1.5, _LONGEST)
            before = now
            await client.clock.sleep(pause)
