"""Every check of the diagnosis: when it is silent, when it speaks, how loudly."""

from datetime import timedelta
from typing import Any

import pytest

from controller.core.diagnosis import (
    CHECKS,
    AgentFacts,
    BackendFacts,
    DatabaseFacts,
    Finding,
    Oldest,
    Severity,
    check_backend,
    check_database,
    skew,
)
from tests.factories import NOW, later

LEASE = timedelta(seconds=60)
NONE = Oldest(count=0, since=None)
OK, WARNING, PROBLEM = Severity.OK, Severity.WARNING, Severity.PROBLEM


def agent(name: str = "a", silent: float = 5, *, slots: int = 2, holding: int = 0) -> AgentFacts:
    return AgentFacts(id=name, last_seen_at=later(-silent), slots=slots, holding=holding)


def backend(**changes: Any) -> BackendFacts:
    values: dict[str, Any] = {
        "slug": "tpp",
        "last_seen_at": later(-5),
        "agents": [agent()],
        "active_jobs": 3,
        "unclaimed": NONE,
        "expired": NONE,
        "cancels": NONE,
        "created": NONE,
        "without_task": [],
        "too_heavy": [],
    }
    return BackendFacts(**values | changes)


def bad(facts: BackendFacts) -> list[Finding]:
    return [each for each in check_backend(facts, NOW, LEASE) if each.level is not OK]


def test_a_well_backend_has_every_check_once_and_no_advice() -> None:
    found = check_backend(backend(), NOW, LEASE)
    assert [each.name for each in found] == [name for name, _, _ in CHECKS]
    assert {(each.level, each.advice, each.backend) for each in found} == {(OK, "", "tpp")}


def oldest(seconds: float, count: int = 2) -> Oldest:
    return Oldest(count=count, since=later(-seconds))


@pytest.mark.parametrize(
    ("changes", "name", "level", "words"),
    [
        ({"last_seen_at": None, "agents": []}, "agents", PROBLEM, "ever heard"),
        ({"last_seen_at": None, "agents": [], "active_jobs": 0}, "agents", WARNING, "ever heard"),
        ({"last_seen_at": later(-300), "agents": [agent(silent=300)]}, "agents", PROBLEM, "for 5 minutes; 3 jobs"),
        ({"last_seen_at": later(-300), "agents": []}, "agents", PROBLEM, "for 5 minutes"),
        ({"last_seen_at": later(-300), "agents": [], "active_jobs": 0}, "agents", WARNING, "for 5 minutes"),
        ({"agents": [agent(), agent("b", 7300, holding=1)]}, "agents", WARNING, "b has been silent for 2 hours and"),
        ({"agents": [agent(), agent("b", 10**7, holding=1)]}, "agents", WARNING, "115 days and holds 1 jobs"),
        ({"created": oldest(61)}, "scheduler", PROBLEM, "2 jobs were looked at by no scheduling pass"),
        ({"unclaimed": oldest(61)}, "tasks_taken", PROBLEM, "free slots (a)"),
        ({"expired": oldest(301)}, "leases", PROBLEM, "2 jobs run on agents"),
        ({"without_task": ["j1", "j2"]}, "running_jobs", PROBLEM, "j1, j2"),
        ({"too_heavy": [f"j{n}" for n in range(7)]}, "weights", PROBLEM, "j4 and 2 more"),
        ({"cancels": oldest(601)}, "stops", WARNING, "2 stops"),
        ({"paused_since": later(-90_000)}, "pause", WARNING, "paused for 25 hours"),
    ],
)
def test_what_is_wrong_is_told_with_what_to_do(changes: Any, name: str, level: Severity, words: str) -> None:
    (found,) = bad(backend(**changes))
    assert (found.name, found.level, found.backend) == (name, level, "tpp")
    assert words in found.message
    assert found.advice


@pytest.mark.parametrize(
    "changes",
    [
        {"agents": []},  # an agent of the Task API: only the heartbeat
        {"agents": [agent(), agent("gone", 10**7)]},  # retired
        {"agents": [agent(silent=60)]},
        {"created": oldest(59)},
        {"unclaimed": oldest(59)},
        {"unclaimed": oldest(10**6), "agents": [agent(slots=2, holding=2)]},
        {"unclaimed": oldest(10**6), "agents": []},
        {"expired": oldest(299)},
        {"cancels": oldest(599)},
        {"paused_since": later(-86_000)},
    ],
)
def test_what_is_not_wrong_is_not_told(changes: Any) -> None:
    assert bad(backend(**changes)) == []


def database(**changes: Any) -> DatabaseFacts:
    values: dict[str, Any] = {
        "now": NOW,
        "version": 160_014,
        "fsync": True,
        "synchronous_commit": True,
        "full_page_writes": True,
    }
    return DatabaseFacts(**values | changes)


def test_a_well_database() -> None:
    found = check_database(database(), NOW)
    assert [(each.name, each.level) for each in found] == [
        ("database_version", OK),
        ("database_durability", OK),
        ("database_clock", OK),
    ]
    assert "16.14" in found[0].message


@pytest.mark.parametrize(
    ("changes", "name", "level", "words"),
    [
        ({"version": 140_011}, "database_version", PROBLEM, "14.11"),
        ({"fsync": False}, "database_durability", PROBLEM, "fsync is off"),
        (
            {"synchronous_commit": False, "full_page_writes": False},
            "database_durability",
            PROBLEM,
            "full_page_writes, ",
        ),
        ({"now": later(3)}, "database_clock", WARNING, "3.0 s ahead of"),
        ({"now": later(-11)}, "database_clock", PROBLEM, "11.0 s behind"),
    ],
)
def test_an_unwell_database(changes: Any, name: str, level: Severity, words: str) -> None:
    (found,) = [each for each in check_database(database(**changes), NOW) if each.level is not OK]
    assert (found.name, found.level) == (name, level)
    assert words in found.message
    assert found.advice


def test_clocks_have_places() -> None:
    assert "the portal" in skew("x", "the portal", later(5), "here", NOW).message
