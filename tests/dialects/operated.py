"""What a scripted engine answers to operators' commands, as in the examples of schemas/native."""

from datetime import UTC, datetime
from typing import Any

from controller.core.errors import Forbidden, NotFound
from controller.core.model import JobId
from controller.engine import results
from controller.engine.operating import FLAGS

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def flags(**given: str | None) -> list[results.FlagView]:
    """All of a backend's flags, `-` written as `_`; those that are not named were never set."""

    def view(name: str) -> results.FlagView:
        key = name.replace("-", "_")
        return results.FlagView(
            backend="test", id=str(name), value=given.get(key), changed_at=T0 if key in given else None
        )

    return [view(name) for name in FLAGS]


def _set(changed: tuple[str, ...], **given: str | None) -> results.FlagsSet:
    return results.FlagsSet(backend="test", changed=changed, flags=tuple(flags(**given)))


def _pause(_: object, backend: str) -> Any:
    if backend == "other":
        return Forbidden(f"This token may use backend {backend!r}, but not manage it.", backend=backend)
    if backend != "test":
        return NotFound(f"There is no backend {backend!r} for this token.", backend=backend)
    return _set(("paused",), paused="true")


ANSWERS: dict[str, Any] = {
    "pause": _pause,
    "unpause": _set((), paused=None),
    "start_maintenance": _set(
        ("mode", "manual-db-maintenance", "db-maintenance-checks-disabled"),
        mode="db-maintenance",
        manual_db_maintenance="on",
        db_maintenance_checks_disabled="true",
    ),
    "end_maintenance": _set(("mode", "manual-db-maintenance"), mode=None, manual_db_maintenance=None),
    "prepare_for_reboot": results.RebootPrepared(
        changed=("paused",),
        jobs=(JobId("mzxw6ytboi2dgnbu"),),
        status=results.RebootStatus(backend="test", paused=True, running=0, cancelling=1),
    ),
}
