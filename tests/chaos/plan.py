"""From a seed to everything that a run does: studies, requests, cancels, and what is broken when. Pure.

The same seed and sizes give the same plan. What a run makes of it also depends on the machine: processes race.
"""

import enum
import random
import string
from collections.abc import Mapping
from typing import Final

import attrs
from attrs import evolve, frozen

ALPHA: Final = "alpha"
"""Two agents share it and its storage; their jobs are sandboxed processes."""
BETA: Final = "beta"
"""One agent, whose jobs live and die with it."""
BACKENDS: Final = (ALPHA, BETA)
AGENTS: Final[Mapping[str, str]] = {"alpha-1": ALPHA, "alpha-2": ALPHA, "beta-1": BETA}
CONTROLLERS: Final = ("controller-1", "controller-2")
DATABASE: Final = "postgres"

LEASE_SECONDS: Final = 2.0
_ID: Final = string.ascii_lowercase + string.digits


class Kind(enum.StrEnum):
    """What can be done to the system."""

    KILL = "kill"
    """SIGKILL; started again after `seconds`."""
    REBOOT = "reboot"
    """SIGKILL to an agent and to all processes of its jobs, as a machine that loses power; back after `seconds`."""
    STOP = "stop"
    """SIGSTOP for `seconds`, then SIGCONT."""
    TERM = "term"
    """SIGTERM: an orderly end; started again when it has ended."""
    PAUSE = "pause"
    """An operator pauses the backend, and unpauses it after `seconds`."""
    MAINTAIN = "maintain"
    """The same with database maintenance."""
    PREPARE_FOR_REBOOT = "prepare for reboot"
    """The same; running jobs go back to the queue."""
    CANCEL = "cancel"
    """Somebody cancels everything that is active in the newest RAPs of the backend."""
    KILL_JOB = "kill a job"
    """An operator ends a running job of the backend."""
    RETRY_JOB = "retry a job"
    """An operator has a running job of the backend stopped and tried again."""


KILLS: Final = frozenset({Kind.KILL, Kind.REBOOT})


@frozen(kw_only=True)
class Action:
    """One action of a study: what its job does, and what must be found afterwards."""

    name: str
    needs: tuple[str, ...]
    outputs: Mapping[str, str]
    """Path -> privacy level."""
    seconds: float
    exit_code: int
    lines: int
    """Lines of each output."""
    database: bool
    inputs: tuple[str, ...]
    """The outputs of its needs."""

    @property
    def command(self) -> str:
        """Its `run` line."""
        image = "sqlrunner:v1" if self.database else "python:v2"
        inputs = ",".join(self.inputs) or "-"
        return f"{image} job.sh {self.seconds} {self.exit_code} {self.lines} {','.join(self.outputs)} {inputs}"


@frozen(kw_only=True)
class Study:
    """A repository with a random graph of actions."""

    name: str
    actions: Mapping[str, Action]

    def project(self) -> dict[str, object]:
        """Its project file (JSON is YAML)."""
        return {"version": "4", "actions": {action.name: _describe(action) for action in self.actions.values()}}

    def closure(self, wanted: tuple[str, ...]) -> set[str]:
        """`wanted` and everything that they need."""
        pending, found = list(wanted), set[str]()
        while pending:
            name = pending.pop()
            if name not in found:
                found.add(name)
                pending += self.actions[name].needs
        return found


@frozen(kw_only=True)
class Cancel:
    """`after` seconds after the RAP was accepted."""

    after: float
    actions: tuple[str, ...]


@frozen(kw_only=True)
class Request:
    """A RAP that the portal asks for."""

    at: float
    """Seconds from the start of the run."""
    rap_id: str
    study: str
    backend: str
    workspace: str
    actions: tuple[str, ...]
    force: bool
    cancel: Cancel | None


@frozen(kw_only=True)
class Fault:
    """Something that goes wrong, or that somebody does."""

    at: float
    kind: Kind
    target: str
    """A process, or for what operators do a backend."""
    seconds: float = 0.0
    hand_back: bool = False
    """For an agent that starts again: whether its next orderly end gives its jobs back."""


@frozen(kw_only=True)
class Rates:
    """How often a request through the proxy meets what; the rest passes untouched."""

    drop: float = 0.02
    lose_answer: float = 0.03
    delay: float = 0.05
    duplicate: float = 0.04
    replay_later: float = 0.03
    truncate_request: float = 0.02
    truncate_answer: float = 0.02


@frozen(kw_only=True)
class Plan:
    """A whole run."""

    seed: int
    seconds: float
    """How long new work comes and things are broken; then everything is mended and the rest runs to its end."""
    studies: Mapping[str, Study]
    requests: tuple[Request, ...]
    faults: tuple[Fault, ...]
    skews: Mapping[str, float]
    """Agent -> seconds that its clock is ahead."""
    rates: Rates

    @property
    def kills(self) -> int:
        """How many processes (or machines) are killed."""
        return sum(fault.kind in KILLS for fault in self.faults)


def make_plan(seed: int, *, jobs: int, kills: int, seconds: float | None = None) -> Plan:
    """The plan of a seed.

    :param jobs: at least so many are asked for.
    :param seconds: how long the faults go on; by default long enough for both numbers.
    """
    rng = random.Random(seed)
    length = seconds if seconds is not None else max(25.0, kills * 2.2, jobs / 7)
    studies = {name: _study(rng, name) for name in (f"study-{number}" for number in range(1, 9))}
    return Plan(
        seed=seed,
        seconds=length,
        studies=studies,
        requests=_requests(rng, studies, jobs, length),
        faults=_faults(rng, kills, length),
        skews={agent: round(rng.choice((-3600.0, -90.0, -5.0, 5.0, 90.0, 86400.0)), 1) for agent in AGENTS},
        rates=Rates(),
    )


def make_fencing_plan() -> Plan:
    """The smallest run that only fencing saves: an agent sleeps through its lease, its jobs are taken over by the
    other, and it wakes with the old attempts finished while the new ones still run."""
    actions = {
        f"work-{number}": _action(random.Random(number), f"work-{number}", (), seconds=8.0 + number / 100)
        for number in range(1, 9)
    }
    stop = Fault(at=4.0, kind=Kind.STOP, target="alpha-1", seconds=4 * LEASE_SECONDS)
    return _scenario(actions, (stop,), seconds=16.0)


def make_claim_plan() -> Plan:
    """The smallest run that only the claim's compare-and-set saves: two agents, one queue, jobs that take a while."""
    actions = {
        f"work-{number}": _action(random.Random(number), f"work-{number}", (), seconds=1.0 + number / 100)
        for number in range(1, 9)
    }
    return _scenario(actions, (), seconds=5.0)


def _scenario(actions: Mapping[str, Action], faults: tuple[Fault, ...], *, seconds: float) -> Plan:
    study = Study(name="scenario", actions=actions)
    request = Request(
        at=0.0,
        rap_id="scenario00000001",
        study="scenario",
        backend=ALPHA,
        workspace="scenario",
        actions=("run_all",),
        force=False,
        cancel=None,
    )
    return Plan(
        seed=0,
        seconds=seconds,
        studies={"scenario": study},
        requests=(request,),
        faults=faults,
        skews=dict.fromkeys(AGENTS, 0.0),
        rates=Rates(**dict.fromkeys(attrs.fields_dict(Rates), 0.0)),
    )


def _describe(action: Action) -> dict[str, object]:
    outputs: dict[str, dict[str, str]] = {}
    for number, (path, level) in enumerate(action.outputs.items()):
        outputs.setdefault(level, {})[f"o{number}"] = path
    return {"run": action.command, "needs": list(action.needs), "outputs": outputs}


def _study(rng: random.Random, name: str) -> Study:
    """A random graph; edges only go back, so there are no circles."""
    actions: dict[str, Action] = {}
    for number in range(rng.randint(4, 18)):
        earlier = list(actions)
        needs = tuple(sorted(rng.sample(earlier, min(len(earlier), rng.choice((0, 1, 1, 2, 3))))))
        seconds = rng.choice((0.0, 0.0, 0.1, 0.3, 0.3, 0.8, rng.uniform(1, 4)))
        code = rng.choice((1, 3, 7)) if rng.random() < 0.04 else 0
        made = _action(rng, f"a{number}", needs, seconds=round(seconds, 2), exit_code=code)
        inputs = tuple(path for need in needs for path in actions[need].outputs)
        actions[made.name] = evolve(made, inputs=inputs)
    return Study(name=name, actions=actions)


def _action(rng: random.Random, name: str, needs: tuple[str, ...], *, seconds: float, exit_code: int = 0) -> Action:
    levels = ("highly_sensitive", "moderately_sensitive")
    return Action(
        name=name,
        needs=needs,
        outputs={f"out/{name}-{number}.txt": rng.choice(levels) for number in range(rng.randint(1, 3))},
        seconds=seconds,
        exit_code=exit_code,
        lines=rng.choice((3, 30, 3000)),
        database=rng.random() < 0.2,
        inputs=(),
    )


def _requests(rng: random.Random, studies: Mapping[str, Study], jobs: int, length: float) -> tuple[Request, ...]:
    """RAPs until there are jobs enough, spread over the first nine tenths of the run.

    Most have a workspace of their own; every fifth goes into one that others use, too, and asks for everything anew,
    so that attempts, RAPs and cancels meet in one place.
    """
    drafts: list[tuple[Study, tuple[str, ...], bool]] = []
    planned = 0
    while planned < jobs:
        study = rng.choice(list(studies.values()))
        names = list(study.actions)
        wanted = ("run_all",) if rng.random() < 0.5 else tuple(rng.sample(names, rng.randint(1, len(names))))
        shared = rng.random() < 0.2
        if not shared:  # where others are at it already, nothing may be left to do
            planned += len(study.closure(tuple(names) if wanted == ("run_all",) else wanted))
        drafts.append((study, wanted, shared))
    times = sorted(rng.uniform(0, 0.9 * length) for _ in drafts)
    return tuple(
        _request(rng, at, number, *draft) for number, (at, draft) in enumerate(zip(times, drafts, strict=True))
    )


def _request(
    rng: random.Random, at: float, number: int, study: Study, wanted: tuple[str, ...], shared: bool
) -> Request:
    names = list(study.actions) if wanted == ("run_all",) else list(wanted)
    cancel = None
    if rng.random() < 0.25:
        chosen = names if rng.random() < 0.3 else rng.sample(names, rng.randint(1, len(names)))
        cancel = Cancel(after=round(rng.expovariate(1 / 2.0), 2), actions=tuple(chosen))
    return Request(
        at=round(at, 2),
        rap_id="".join(rng.choice(_ID) for _ in range(16)),
        study=study.name,
        backend=rng.choice(BACKENDS),
        workspace=f"shared-{study.name}" if shared else f"own-{number}",
        actions=wanted,
        force=shared,
        cancel=cancel,
    )


def _faults(rng: random.Random, kills: int, length: float) -> tuple[Fault, ...]:
    """Kills, and for each four of them a stop, an orderly restart, and something that an operator does."""
    others = kills // 4
    kinds = [Kind.KILL if rng.random() < 0.85 else Kind.REBOOT for _ in range(kills)]
    kinds += [Kind.STOP] * others + [Kind.TERM] * others
    often = (Kind.PREPARE_FOR_REBOOT, Kind.RETRY_JOB)
    operating = (Kind.PAUSE, Kind.MAINTAIN, Kind.CANCEL, Kind.KILL_JOB, *often, *often)
    kinds += [rng.choice(operating) for _ in range(others)]
    return tuple(sorted((_fault(rng, kind, length) for kind in kinds), key=lambda fault: fault.at))


def _fault(rng: random.Random, kind: Kind, length: float) -> Fault:
    at = round(rng.uniform(0.03 * length, 0.95 * length), 2)
    hand_back = rng.random() < 0.5
    if kind is Kind.STOP:
        target = rng.choice((*CONTROLLERS, "alpha-1", "alpha-2", "alpha-1", "alpha-2", "beta-1"))
        seconds = rng.uniform(1.1, 3.0) * LEASE_SECONDS
    elif kind in (Kind.KILL, Kind.REBOOT, Kind.TERM):
        targets = tuple(AGENTS) if kind is Kind.REBOOT else (*CONTROLLERS, *AGENTS)
        database = kind is Kind.KILL and rng.random() < 0.2
        target = DATABASE if database else rng.choice(targets)
        # Some come back at once, some only after their lease has ended.
        seconds = rng.choice((0.0, 0.0, 0.5, 2.5 * LEASE_SECONDS)) if target in AGENTS else rng.choice((0.0, 0.5, 1.5))
    else:
        target, seconds = rng.choice(BACKENDS), rng.uniform(0.5, 3.0)
    return Fault(at=at, kind=kind, target=target, seconds=round(seconds, 2), hand_back=hand_back)
