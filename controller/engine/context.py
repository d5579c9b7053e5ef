"""What every part of the engine works with; made once, in controller/app.py."""

import asyncio
import random
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any
from weakref import WeakValueDictionary

from attrs import field, frozen

from common.clock import Clock
from controller.core.definition import Terms
from controller.core.model import TaskType
from controller.core.observer import UNOBSERVED, Observer
from controller.core.resources import JobLimits
from controller.core.retry import RetryPolicy
from controller.core.schedule import Limits
from controller.core.weights import Weights
from controller.engine.broadcast import Broadcast
from controller.engine.known_tokens import KnownTokens
from controller.sources.git import Git
from controller.sources.images import ImageDigests
from controller.sources.project_file import ProjectFiles
from controller.sources.reusable import ReusableActions
from controller.store.db import Database
from controller.store.listen import Wakeups


@frozen(kw_only=True)
class Sources:
    """The outside world that a plan needs."""

    git: Git
    projects: ProjectFiles
    reusable: ReusableActions
    digests: ImageDigests | None
    """None: definitions carry no image digest (`RAP_IMAGE_DIGESTS=off`)."""

    async def close(self) -> None:
        """Give up look-ups that are under way."""
        await self.projects.close()
        if self.digests is not None:
            await self.digests.close()


@frozen(kw_only=True)
class BackendTerms:
    """What the settings say of one backend."""

    limits: Limits
    terms: Terms
    most: JobLimits
    """How much an author may ask for one job."""
    weights: Weights = field(factory=Weights)
    checks: Mapping[TaskType, Mapping[str, Any]] = field(factory=dict)
    """The checks of its database that come round, and their definitions (`controller.core.checks.definitions`)."""


@frozen(kw_only=True)
class Context:
    """The engine's surroundings; nothing in it is state that must survive."""

    db: Database
    clock: Clock
    wakeups: Wakeups
    sources: Sources
    backends: MutableMapping[str, BackendTerms]
    """By slug; replaced when an operator changes weights while running."""
    event_level_projects: frozenset[str]
    retry: RetryPolicy
    lease_seconds: float
    poll_seconds: float
    log_bytes: int
    closing: asyncio.Event
    """Set when the process is about to stop: long-polls answer at once."""
    observer: Observer = UNOBSERVED
    """Told of what happens to jobs and tasks, for measuring."""
    jitter: Callable[[], float] = random.random
    """Numbers in [0, 1), for `RetryPolicy.delay`."""
    looking: MutableMapping[tuple[str, str], asyncio.Lock] = field(factory=WeakValueDictionary, repr=False)
    """One look for tasks at a time per (backend, agent), so that a poll that was given up cannot take a task just
    after the poll that replaced it found nothing. A lock lives as long as somebody polls."""
    known_tokens: KnownTokens = field(factory=KnownTokens, repr=False)
    """What the database said of tokens a moment ago."""
    broadcast: Broadcast = field(factory=Broadcast, repr=False)
    """What happened a moment ago, for those who follow it."""
