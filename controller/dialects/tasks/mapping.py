"""From our tasks to the Task API's words."""

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from controller.core.model import Task
from controller.dialects.tasks.wire import send


def listing(tasks: Iterable[Task]) -> web.Response:
    """The answer to `tasks/`: everything active, in the engine's order."""
    return send({"tasks": [task(each) for each in tasks]})


def task(task: Task) -> dict[str, Any]:
    """A task with exactly the keys that upstream's agents know: at one more they stop working."""
    return {
        "id": task.id,
        "backend": task.backend,
        "type": task.type,
        "definition": dict(task.definition),
        "attributes": dict(task.attributes),
        "created_at": int(task.created_at.timestamp()),
    }
