"""RAPs and jobs as tables for people.

Whatever comes from a study (names, messages, paths) is shown as plain text: no markup, no escape sequences.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

Detail = Mapping[str, Any]
"""An answer of the native API: what `GET /api/raps/{id}` says."""

STYLES: Final[Mapping[str, str]] = {
    "pending": "dim",
    "running": "cyan",
    "succeeded": "green",
    "failed": "bold red",
}
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What steers a terminal, the marks that turn the direction of text included."""
_TERMINAL: Final = ("succeeded", "failed")
_GAP: Final = 2
"""Columns of a terminal between two columns of a table."""
_ACTION_WIDTH: Final = 16
"""Columns that an action's name gets before it is broken."""


def safe(text: str) -> str:
    """`text` with its control characters spelt out, so that it cannot steer a terminal."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def is_finished(detail: Detail) -> bool:
    """Whether nothing can change any more."""
    return all(is_over(job) for job in detail["jobs"])


def is_over(job: Detail) -> bool:
    """Whether a job has ended, one way or the other."""
    return job["state"] in _TERMINAL


def all_succeeded(detail: Detail) -> bool:
    """Whether every job succeeded."""
    return all(job["state"] == "succeeded" for job in detail["jobs"])


def duration(seconds: float) -> str:
    """Seconds in as few characters as a person needs; what clocks make negative is none."""
    seconds = max(0.0, seconds)
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02}m"


def ago(at: str | None, now: datetime) -> str:
    """How long before `now` something happened, such as `2m 03s ago`; `never` if it did not."""
    when = _time(at)
    return "never" if when is None else f"{duration((now - when).total_seconds())} ago"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: `1 job`, `2 jobs`; `plural` where an s is not enough."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def job_name(job: Detail) -> str:
    """A job in few words: id, action, state and backend."""
    return f"{job['id']} ({safe(job['action'])}, {job['state']}, backend {safe(job['backend'])})"


def waited(job: Detail, now: datetime) -> float:
    """Seconds from the job's creation to its (last) start, its end if it never started, or now."""
    end = _time(job["started_at"]) or _time(job["completed_at"]) or now
    return (end - datetime.fromisoformat(job["created_at"])).total_seconds()


def ran(job: Detail, now: datetime) -> float | None:
    """Seconds from the job's start to its end or now; None if it has not started."""
    start = _time(job["started_at"])
    return None if start is None else ((_time(job["completed_at"]) or now) - start).total_seconds()


def size(count: float) -> str:
    """Bytes in units of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def state_text(state: str, words: str | None = None) -> Text:
    """A state in its colour."""
    return Text(words or state, style=STYLES.get(state, ""))


def headline(detail: Detail) -> Text:
    """The RAP in one line."""
    rap = detail["rap"]
    line = Text.assemble("RAP ", (rap["id"], "bold"), " ", state_text(rap["state"]))
    place = f"  backend {rap['backend']}, workspace {rap['workspace']}, commit {rap['commit'][:10]}"
    return line.append(safe(place), style="dim")


def jobs_table(jobs: Sequence[Detail], now: datetime | None = None) -> Table:
    """One line per job: state, code, message, times, and metrics (mean/peak) if there are any."""
    now = now or datetime.now(UTC)
    with_metrics = any(job["metrics"] for job in jobs)
    table = _table()
    longest = max((len(job["action"]) for job in jobs), default=0)
    table.add_column("Action", overflow="fold", min_width=min(longest, _ACTION_WIDTH))
    table.add_column("State", no_wrap=True)
    table.add_column("Code: message", overflow="fold", min_width=12)
    for header in ("Waited", "Ran", *(("CPU %", "Mem MiB") if with_metrics else ())):
        table.add_column(header, justify="right", no_wrap=True)
    for job in jobs:
        took = ran(job, now)
        cells = [
            Text(safe(job["action"])),
            state_text(job["state"]),
            Text(f"{job['code']}: {safe(job['message'])}"),
            Text(duration(waited(job, now))),
            Text("" if took is None else duration(took)),
        ]
        if with_metrics:
            cells += [Text(_pair(job["metrics"], "cpu")), Text(_pair(job["metrics"], "mem_mb"))]
        table.add_row(*cells)
    return table


def print_list(
    console: Console, headers: Sequence[str], rows: Iterable[Sequence[Text | str]], *, spare: Sequence[str] = ()
) -> None:
    """A table; on a terminal that is too narrow for it, without some of its columns, rather than in slivers.

    :param headers: of the columns; the first one is what people type next, and is never broken.
    :param rows: cells that are strings are made safe here.
    :param spare: headers of the columns that can be missed, the first one first.
    """
    columns = {name: [Text(name)] for name in headers}
    for row in rows:
        for name, cell in zip(headers, row, strict=True):
            columns[name].append(cell if isinstance(cell, Text) else Text(safe(cell)))
    missed: list[str] = []
    for name in spare:
        if console.is_terminal and _least_width(columns) > console.width and columns.pop(name, []):
            missed.append(name)
    made = _table(*columns)
    made.columns[0].no_wrap = True
    if console.is_terminal and _least_width(columns) <= console.width:
        for column, width in zip(made.columns, _widths(list(columns.values()), console.width), strict=True):
            column.width = width
    for cells in zip(*(cells[1:] for cells in columns.values()), strict=True):
        made.add_row(*cells)
    console.print(made)
    if missed:
        console.print(f"No room for: {', '.join(missed)} (widen the terminal, or see --json)", style="dim")


def _least_width(columns: Mapping[str, Sequence[Text]]) -> int:
    """What a terminal needs if no word is to be broken."""
    return sum(_longest_word(cells) + _GAP for cells in columns.values()) - _GAP


def _longest_word(cells: Iterable[Text]) -> int:
    words = (word for cell in cells for word in ([cell.plain] if cell.no_wrap else cell.plain.split()))
    return max(map(cell_len, words), default=0)


def _widths(columns: Sequence[Sequence[Text]], room: int) -> list[int]:
    """Each column gets what its longest word needs; the room that is left goes to those that want more, in turns."""
    widths = [_longest_word(cells) for cells in columns]
    wanted = [max(cell.cell_len for cell in cells) for cells in columns]
    left = room - sum(widths) - _GAP * (len(widths) - 1)
    while left > 0 and (narrow := [at for at, width in enumerate(widths) if width < wanted[at]]):
        for at in narrow[:left]:
            widths[at] += 1
        left -= len(narrow[:left])
    return widths


def print_rap(console: Console, detail: Detail) -> None:
    """A RAP for a person: its jobs, their metrics, their outputs with level and size, and the trace."""
    console.print(headline(detail))
    console.print(jobs_table(detail["jobs"]))
    _print_outputs(console, detail["jobs"])
    _print_traces(console, detail["jobs"])


def _print_outputs(console: Console, jobs: Iterable[Detail]) -> None:
    table = _table("Output of", "File", "Privacy level")
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("Note")
    for job in jobs:
        for output in job["outputs"]:
            note = f"not released: {output['message']}" if output["excluded"] else output["message"]
            if output.get("released_by") is not None:
                note = f"released by {output['released_by']} at {output['released_at']}"
            table.add_row(
                Text(safe(job["action"])),
                Text(safe(output["path"]), overflow="fold"),
                Text(safe(output["level"])),
                Text(size(output["size"])),
                Text(safe(note)),
            )
    if table.row_count:
        console.print(table)


def _print_traces(console: Console, jobs: Sequence[Detail]) -> None:
    traces = {job["trace_id"] for job in jobs if job["trace_id"]}
    if len(traces) == 1:
        console.print(f"Trace id: {traces.pop()}", soft_wrap=True)
        return
    for job in jobs:
        if job["trace_id"]:
            console.print(f"Trace id of {safe(job['action'])}: {job['trace_id']}", soft_wrap=True)


def _pair(metrics: Mapping[str, Any], name: str) -> str:
    mean, peak = metrics.get(f"{name}_mean"), metrics.get(f"{name}_peak")
    if not isinstance(mean, int | float) or not isinstance(peak, int | float):
        return ""
    return f"{mean:.0f}/{peak:.0f}"


def table(*columns: str) -> Table:
    """An empty table in the style of all our tables."""
    return _table(*columns)


def _table(*columns: str) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
