"""A RAP's spans as a waterfall: per job a bar, what it waited for, and each attempt with where it ran.

Whatever comes from a study or an agent is shown as plain text: no markup, no escape sequences.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from attrs import field, frozen
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from cli import report

Span = Mapping[str, Any]
"""One of the spans that `GET /api/raps/{id}/trace` answers."""

_WAIT, _START = "wait", "start"
_STEPS: Final[Mapping[str, str]] = {
    "PREPARING": "prepare",
    "PREPARED": "prepare",
    "EXECUTING": "execute",
    "EXECUTED": "execute",
    "FINALIZING": "finalize",
    "FINALIZED": "finalize",
}
_STARTED: Final = "INITIATED"
_MARKS: Final[Mapping[str, tuple[str, str, str]]] = {
    _WAIT: ("·", ".", "dim"),
    _START: ("░", "-", "yellow"),
    "prepare": ("▒", "=", "blue"),
    "execute": ("█", "#", "cyan"),
    "finalize": ("▓", "+", "magenta"),
}
"""What a bar shows -> how, how without Unicode, and in which colour."""
_WORDS: Final[Mapping[str, str]] = {
    "CREATED": "to be looked at",
    "WAITING_PAUSED": "for the backend's pause to end",
    "WAITING_DB_MAINTENANCE": "for the database's maintenance to end",
    "WAITING_ON_WORKERS": "for a free worker",
    "WAITING_ON_DB_WORKERS": "for a free database worker",
    "WAITING_ON_REBOOT": "for the backend's reboot",
    "WAITING_ON_NEW_TASK": "for another attempt",
}
_SHORTEST: Final = 0.01
"""Of the RAP's time; what is over and took less than that is in its job's bar alone."""
_LEAST_BAR: Final = 10


@frozen(kw_only=True)
class _Row:
    """One line of the waterfall."""

    name: Text
    told: Text
    seconds: float
    pieces: Sequence[tuple[str, float, float]]
    """What to draw, from when to when: seconds since the RAP began."""


@frozen
class _Bar:
    """Pieces of time as marks, over as many columns as there are."""

    pieces: Sequence[tuple[str, float, float]]
    total: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(1, options.max_width)
        cells = [""] * width
        for kind, begin, end in self.pieces:
            first = min(width - 1, int(begin / self.total * width))
            last = max(first + 1, round(end / self.total * width))
            cells[first : min(last, width)] = [kind] * (min(last, width) - first)
        line = Text(no_wrap=True)
        for kind in cells:
            mark, plain, style = _MARKS.get(kind, (" ", " ", ""))
            line.append(plain if options.ascii_only else mark, style=style)
        yield line


def print_trace(console: Console, trace: Mapping[str, Any]) -> None:
    """The waterfall, what its marks mean, and the trace id."""
    spans = trace["spans"]
    root, jobs = spans[0], [span for span in spans if span["kind"] == "job"]
    said = root["attributes"]
    now = datetime.fromisoformat(trace["at"])
    begin = datetime.fromisoformat(root["started_at"])
    total = max(_seconds(begin, root["ended_at"], now), 0.001)
    place = f"  backend {said['rap.backend']}, workspace {said['rap.workspace']}, commit {said['rap.commit'][:10]}"
    head = Text.assemble("RAP ", (trace["rap_id"], "bold"), " ", report.state_text(_state(root, jobs)))
    console.print(head.append(report.safe(place), style="dim"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0), expand=True)
    table.add_column("Job", overflow="fold", max_width=28)
    table.add_column("What", overflow="fold", ratio=2, min_width=20)
    table.add_column("Took", justify="right", no_wrap=True)
    table.add_column(f"0s to {report.duration(total)}", ratio=3, min_width=_LEAST_BAR, no_wrap=True)
    open_actions = {str(job["attributes"]["job.action"]) for job in jobs if job["ended_at"] is None}
    for job in jobs:
        codes = [span for span in spans if span["parent_id"] == job["span_id"] and span["kind"] in ("state", "final")]
        life = _Life(job=job, codes=codes, begin=begin, now=now, brief=total * _SHORTEST, open_actions=open_actions)
        for row in life.rows():
            table.add_row(row.name, row.told, Text(report.duration(row.seconds)), _Bar(row.pieces, total))
    console.print(table)
    ascii_only = console.options.ascii_only
    key = "  ".join(f"{plain if ascii_only else mark} {kind}" for kind, (mark, plain, _) in _MARKS.items())
    console.print(Text(key, style="dim"))
    console.print(f"Trace id: {trace['trace_id']}", soft_wrap=True)


@frozen(kw_only=True)
class _Life:
    """A job and its codes, to be told."""

    job: Span
    codes: Sequence[Span]
    begin: datetime
    now: datetime
    brief: float
    """Seconds; what took less is not worth a line."""
    open_actions: set[str] = field(repr=False)
    """Actions of the RAP that are not over."""

    def rows(self) -> Iterable[_Row]:
        """The job, then its waits and attempts in their order."""
        said = self.job["attributes"]
        state = str(said["job.state"]).lower()
        told = report.state_text(state)
        if state == "failed":
            told.append(f": {report.safe(str(said['job.message']))}", style="not bold default")
        lived = [span for span in self.codes if span["kind"] == "state"]
        yield _Row(
            name=Text(report.safe(str(said["job.action"])), style="bold"),
            told=told,
            seconds=_seconds(datetime.fromisoformat(self.job["started_at"]), self.job["ended_at"], self.now),
            pieces=[self._piece(span) for span in lived],
        )
        place = 0
        while place < len(self.codes):
            attempt = self._attempt_at(place)
            if attempt:
                yield from self._attempt(attempt, self.codes[place + len(attempt) :])
            elif (row := self._wait(self.codes[place])) is not None:
                yield row
            place += max(1, len(attempt))

    def _attempt_at(self, place: int) -> list[Span]:
        """The codes from here on that are one attempt's; none if this one is not part of any."""
        found: list[Span] = []
        number = self._of(self.codes[place], "job.attempt")
        for span in self.codes[place:]:
            running = span["name"] == _STARTED or span["name"] in _STEPS
            if not running or self._of(span, "job.attempt") != number:
                break
            found.append(span)
        return found

    def _attempt(self, codes: Sequence[Span], following: Sequence[Span]) -> Iterable[_Row]:
        """Where it ran and how it ended, if that is not the job's own end; then its steps."""
        agent = self._of(codes[0], "job.agent")
        taken = any(span["name"] in _STEPS for span in codes)
        told = f"on {agent}" if agent != "None" else "agent without a name" if taken else "no agent has taken it"
        if following and following[0]["kind"] == "state":
            told += f": {self._of(following[0], 'job.message')}"
        yield self._row(f"  attempt {self._of(codes[0], 'job.attempt')}", told, codes)
        steps: dict[str, list[Span]] = {}
        for span in codes:
            steps.setdefault(_STEPS.get(span["name"], "waiting for the agent"), []).append(span)
        for step, spans in steps.items():
            row = self._row("", step, spans)
            if row.seconds >= self.brief or spans[-1]["ended_at"] is None:
                yield row

    def _row(self, name: str, told: str, spans: Sequence[Span]) -> _Row:
        return _Row(
            name=Text(name),
            told=Text(report.safe(told)),
            seconds=sum(map(self._took, spans)),
            pieces=[self._piece(span) for span in spans],
        )

    def _wait(self, span: Span) -> _Row | None:
        over = span["ended_at"] is not None
        if span["kind"] == "final" or (over and self._took(span) < self.brief):
            return None
        return self._row("  waited" if over else "  waits", self._reason(span, over), [span])

    def _reason(self, span: Span, over: bool) -> str:
        if span["name"] != "WAITING_ON_DEPENDENCIES":
            return _WORDS.get(span["name"], str(self._of(span, "job.message")))
        needs = [need for need in str(self.job["attributes"]["job.needs"]).split(",") if need]
        left = needs if over else [need for need in needs if need in self.open_actions]
        return f"for {', '.join(left or needs)}"

    def _of(self, span: Span, name: str) -> Any:
        """An attribute of a code; what it does not say, its job's span says."""
        return span["attributes"].get(name, self.job["attributes"].get(name, "None"))

    def _took(self, span: Span) -> float:
        return _seconds(datetime.fromisoformat(span["started_at"]), span["ended_at"], self.now)

    def _piece(self, span: Span) -> tuple[str, float, float]:
        kind = _STEPS.get(span["name"], _START if span["name"] == _STARTED else _WAIT)
        start = (datetime.fromisoformat(span["started_at"]) - self.begin).total_seconds()
        return kind, max(0.0, start), max(0.0, start) + self._took(span)


def _state(root: Span, jobs: Iterable[Span]) -> str:
    """Of the RAP as a whole, as `rap status` says it."""
    if root["ended_at"] is not None:
        return "succeeded" if root["attributes"]["rap.succeeded"] else "failed"
    return "pending" if all(job["attributes"]["job.state"] == "PENDING" for job in jobs) else "running"


def _seconds(start: datetime, end: str | None, now: datetime) -> float:
    return max(0.0, ((datetime.fromisoformat(end) if end else now) - start).total_seconds())
