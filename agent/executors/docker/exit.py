"""What an engine's description of a container says about the run in it."""

import re
import signal
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from attrs import frozen

from agent.core.redact import redact_environment
from agent.executors.base import Exit
from agent.executors.docker.spec import MARKS

KILLED: Final = 128 + signal.SIGKILL
UNKNOWN: Final = 255
"""What Docker calls the code of a container that it found dead when it started."""
FULL: Final = 256
"""How many events Docker remembers."""
_ENDS: Final = (KILLED, 128 + signal.SIGTERM, UNKNOWN)
"""The codes that a container has after its engine stopped it, or lost it."""
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


@frozen(kw_only=True)
class Circumstances:
    """What the notes and the engine's memory add to the container itself."""

    terminated: bool = False
    timed_out: bool = False
    outage: bool = False
    rebooted: bool = False
    """Whether the machine was started again after the run was."""
    restarted: bool = False
    """Whether the engine was started again after the run was."""


def time_ns(text: object) -> int:
    """A time of the engine, RFC 3339 with nanoseconds, as Unix nanoseconds; 0 for none (the year 1)."""
    match = _TIME.fullmatch(str(text or ""))
    if match is None or match[1].startswith("0001"):
        return 0
    seconds = int(datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00")).timestamp())
    return seconds * 1_000_000_000 + int((match[2] or "").ljust(9, "0"))


def has_started(container: Mapping[str, Any]) -> bool:
    """Whether the container's process was ever started."""
    return time_ns(container["State"].get("StartedAt")) > 0


def has_ended(container: Mapping[str, Any]) -> bool:
    """Whether it was started, and its process is gone."""
    state = container["State"]
    running = state.get("Running") or state.get("Paused") or state.get("Restarting")
    return has_started(container) and not running and state.get("Status") not in ("created", "running", "stopping")


def may_be_lost(container: Mapping[str, Any]) -> bool:
    """Whether the exit code is one that the engine's own end gives to its containers."""
    return int(container["State"].get("ExitCode") or 0) in _ENDS


def engine_restarted(container_id: str, events: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the engine has forgotten the start of the container, because it was itself started since.

    Docker keeps its newest events in memory only. Where there are as many as it keeps, an old one may just have
    been pushed out, and nothing is known.
    """
    if len(events) >= FULL:
        return False
    return not any(event.get("Action") == "start" and event.get("id") == container_id for event in events)


def compose_exit(container: Mapping[str, Any], around: Circumstances, metrics: Mapping[str, float]) -> Exit:
    """How the run in an ended container ended."""
    state = container["State"]
    code = int(state.get("ExitCode") or 0)
    started = time_ns(state.get("StartedAt"))
    terminated = around.terminated and code == KILLED
    timed_out = around.timed_out and code == KILLED and not terminated
    ours = terminated or timed_out
    oom = bool(state.get("OOMKilled")) and code != 0 and not ours
    return Exit(
        code=code,
        started_at_ns=started,
        finished_at_ns=max(started, time_ns(state.get("FinishedAt"))),
        oom_killed=oom,
        timed_out=timed_out,
        terminated=terminated,
        lost=None if ours or oom else _loss(container, around),
        image_id=_image_id(container),
        labels={k: v for k, v in ((container.get("Config") or {}).get("Labels") or {}).items() if k not in MARKS},
        metrics=metrics,
        metadata=redact_environment(_without_filter(container)),
    )


def _without_filter(container: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the engine says of a container, without the text of its filter of system calls: 30 kB, always the same."""
    host = container.get("HostConfig")
    if not isinstance(host, Mapping) or not isinstance(options := host.get("SecurityOpt"), list):
        return container
    shorter = ["seccomp=own" if str(option).startswith("seccomp={") else option for option in options]
    return {**container, "HostConfig": {**host, "SecurityOpt": shorter}}


def lost_exit(reason: str, started_ns: int, now_ns: int, metrics: Mapping[str, float], *, terminated: bool) -> Exit:
    """The end of a run whose container is gone."""
    return Exit(
        code=KILLED,
        started_at_ns=started_ns,
        finished_at_ns=max(started_ns, now_ns),
        terminated=terminated,
        lost=None if terminated else reason,
        metrics=metrics,
    )


def _loss(container: Mapping[str, Any], around: Circumstances) -> str | None:
    state = container["State"]
    if state.get("Dead") or state.get("Status") == "dead":
        return f"the engine could not end the container properly: {state.get('Error') or 'it is dead'}"
    if not may_be_lost(container):
        return None
    if around.rebooted:
        return "the machine restarted"
    if around.outage or around.restarted:
        return "the container engine was restarted, and ended it"
    return None


def _image_id(container: Mapping[str, Any]) -> str | None:
    image = container.get("Image")
    if not isinstance(image, str) or not image:
        return None
    return image if image.startswith("sha256:") else f"sha256:{image}"
