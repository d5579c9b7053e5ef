"""An engine that answers as it was told and remembers what it was asked."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from controller.engine.facade import Engine


class ScriptedEngine:
    """Stands in for the facade: every call must fit the signature of the `Engine` method of its name.

    `script` maps a method's name to its answer: a value to return, an exception to raise, or a function of the
    call's arguments (a coroutine function, too) that does either. A method without an answer fails the test.
    """

    def __init__(self, **script: Any) -> None:
        self.script: dict[str, Any] = script
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    @property
    def last_call(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        return self.calls[-1]

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        signature = inspect.signature(getattr(Engine, name))

        async def method(*args: Any, **kwargs: Any) -> Any:
            signature.bind(self, *args, **kwargs)
            self.calls.append((name, args, kwargs))
            answer = self.script[name]
            if callable(answer):
                answer = answer(*args, **kwargs)
            if inspect.isawaitable(answer):
                answer = await answer
            if isinstance(answer, Exception):
                raise answer
            return answer

        return method
