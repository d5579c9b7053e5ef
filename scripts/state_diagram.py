"""Print the job's state machine into docs/architecture.md, from the table that the controller runs on.

    python scripts/state_diagram.py          write the section between the markers
    python scripts/state_diagram.py --check  exit with 1 if it is out of date

What is printed comes from `TRANSITIONS` of controller/core/machine.py and from trying `step`, so the page
cannot say anything that the controller does not do.
"""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script works without an installed package

from controller.core.codes import JobState, StatusCode  # noqa: E402  after the path is set
from controller.core.machine import CODES_ALLOWED, TRANSITIONS, created, step  # noqa: E402  after the path is set

PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- state machine: begin, written by scripts/state_diagram.py -->"
END = "<!-- state machine: end -->"


NOW = datetime(2026, 1, 1, tzinfo=UTC)
A_CODE_OF = {
    JobState.PENDING: StatusCode.CREATED,
    JobState.RUNNING: StatusCode.INITIATED,
    JobState.SUCCEEDED: StatusCode.SUCCEEDED,
    JobState.FAILED: StatusCode.NONZERO_EXIT,
}
"""Where a job stands when an event is tried on it."""


class MissingMarkersError(ValueError):
    """The page has no place for the section."""


def print_diagram() -> str:
    """A mermaid state diagram: one arrow per pair of states, labelled with the events that make the move."""
    arrows: dict[tuple[JobState, JobState], list[str]] = {}
    for (state, event), (_, targets) in TRANSITIONS.items():
        for target in sorted(targets):
            arrows.setdefault((state, target), []).append(event.__name__)
    lines = ["```mermaid", "stateDiagram-v2", "    direction LR", f"    [*] --> {JobState.PENDING}: created"]
    lines += [f"    {state} --> {target}: {', '.join(events)}" for (state, target), events in arrows.items()]
    lines += [f"    {state} --> [*]" for state in JobState if state.is_terminal]
    return "\n".join([*lines, "```"])


def print_table() -> str:
    """Every legal move: state, event, next state, and the codes that the job may have afterwards."""
    lines = ["| state | event | next | code afterwards |", "|---|---|---|---|"]
    for (state, event), (_, targets) in TRANSITIONS.items():
        following = ", ".join(f"`{target}`" for target in sorted(targets))
        lines.append(f"| `{state}` | {event.__name__} | {following} | {_codes_after(state, event)} |")
    return "\n".join(lines)


def _codes_after(state: JobState, event: type) -> str:
    """What `step` makes of the event with every code that it may carry."""
    before = attrs.evolve(created(NOW), state=state, code=A_CODE_OF[state])
    events = [event(code=code) for code in CODES_ALLOWED[event]] if event in CODES_ALLOWED else [event()]
    after = {step(before, each, NOW).after.code for each in events}
    if after == {before.code}:
        return "as before"
    return ", ".join(f"`{code}`" for code in StatusCode if code in after)


def print_section() -> str:
    """What stands between the markers, markers included."""
    return f"{BEGIN}\n\n{print_diagram()}\n\n{print_table()}\n\n{END}"


def renew(page: str) -> str:
    """The page with the section as the table has it now.

    :raises MissingMarkersError: the page does not have both markers, in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise MissingMarkersError(f"the markers {BEGIN!r} and {END!r} must both be in the page, in this order")
    return before + print_section() + after


def main() -> int:
    parser = argparse.ArgumentParser(description="Print the job's state machine into docs/architecture.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if out of date")
    check: bool = parser.parse_args().check
    page = PAGE.read_text()
    renewed = renew(page)
    if check and renewed != page:
        sys.stderr.write("docs/architecture.md is out of date: run python scripts/state_diagram.py\n")
        return 1
    if not check:
        PAGE.write_text(renewed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
