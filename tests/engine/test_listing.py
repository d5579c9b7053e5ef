"""Lists of jobs: their order, their filters, and that pages show every job once."""

from typing import Any

import pytest

from controller.core.errors import Rejected
from controller.core.model import Principal
from controller.engine import listing
from controller.engine.listing import JobSummary
from tests.engine.conftest import Harness, Study
from tests.factories import principal

HOSTILE = ("%", "_", "\\", "' OR '1'='1", "'; DROP TABLE job; --", "<script>alert(1)</script>", "$1", ".*", "a\nb")
"""Searched for as they are, and so found nowhere."""


async def pages(
    harness: Harness, limit: int = 200, who: Principal | None = None, **filters: Any
) -> tuple[list[JobSummary], list[int]]:
    """Every job that the filters let through, and the sizes of the pages."""
    wanted: dict[str, Any] = {"backend": None, "workspace": None, "state": None, "code": None} | filters
    found: list[JobSummary] = []
    sizes: list[int] = []
    cursor = None
    while True:
        page = await harness.engine.list_jobs(who or principal("test", "other"), limit=limit, cursor=cursor, **wanted)
        found += page.jobs
        sizes.append(len(page.jobs))
        cursor = page.next_cursor
        if cursor is None:
            return found, sizes


def names(found: list[JobSummary]) -> list[str]:
    return [f"{job.workspace}/{job.action}" for job in found]


async def history(harness: Harness, study: Study) -> None:
    """Four workspaces: one failed, one succeeded, one running with a waiting job, one on another backend."""
    for workspace, exit_code in (("a", 1), ("b", 0)):
        await harness.create(study.request("extract", workspace=workspace))
        await harness.settle()
        (task,) = await harness.claim()
        await harness.finish(task, exit_code=exit_code)
    await harness.create(study.request("analyse", workspace="c"))
    await harness.settle()
    await harness.claim()
    await harness.create(study.request("extract", workspace="d", backend="other"))


async def test_what_is_not_finished_comes_oldest_first_and_all_else_newest_first(
    harness: Harness, study: Study
) -> None:
    await history(harness, study)
    everything, _ = await pages(harness)
    assert names(everything) == ["d/extract", "c/analyse", "c/extract", "b/extract", "a/extract"]
    queue, _ = await pages(harness, state="active")
    assert names(queue) == ["c/extract", "c/analyse", "d/extract"]
    job = queue[0]
    assert (job.agent, job.attempt, job.created_by, job.weight) == ("agent-1", 1, "researcher", 1)
    assert (queue[1].agent, queue[1].attempt) == (None, 0)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"state": "running"}, ["c/extract"]),
        ({"state": "pending"}, ["c/analyse", "d/extract"]),
        ({"state": "pending", "backend": "test"}, ["c/analyse"]),
        ({"state": "failed"}, ["a/extract"]),
        ({"state": "succeeded"}, ["b/extract"]),
        ({"code": "nonzero_exit"}, ["a/extract"]),
        ({"code": "waiting_on_dependencies"}, ["c/analyse"]),
        ({"code": "initiated", "state": "active"}, ["c/extract"]),
        ({"workspace": "c"}, ["c/analyse", "c/extract"]),
        ({"workspace": "c", "state": "active"}, ["c/extract", "c/analyse"]),
        ({"workspace": "none such"}, []),
        ({"backend": "mars"}, []),
        ({"who": principal("other")}, ["d/extract"]),
        ({"created_by": "researcher", "state": "failed"}, ["a/extract"]),
        ({"created_by": "researcher", "state": "active"}, ["c/extract", "c/analyse", "d/extract"]),
        ({"created_by": "research"}, []),
        ({"created_by": "somebody", "state": "active"}, []),
        ({"search": "ANALY"}, ["c/analyse"]),
        ({"search": "analy", "state": "active"}, ["c/analyse"]),
        ({"search": "extract", "state": "succeeded"}, ["b/extract"]),
        *[({"search": hostile}, []) for hostile in HOSTILE],
        *[({"search": hostile, "state": "active"}, []) for hostile in HOSTILE],
    ],
)
async def test_filters(harness: Harness, study: Study, filters: dict[str, Any], expected: list[str]) -> None:
    await history(harness, study)
    found, _ = await pages(harness, **filters)
    assert names(found) == expected


@pytest.mark.parametrize("state", [None, "active"])
@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_pages_show_every_job_once(harness: Harness, study: Study, state: str | None, limit: int) -> None:
    await history(harness, study)
    await harness.create(study.request(workspace="e"))
    whole, _ = await pages(harness, state=state)
    found, sizes = await pages(harness, limit, state=state)
    assert found == whole
    assert all(size == limit for size in sizes[:-1])
    assert 0 < sizes[-1] <= limit


async def test_a_rare_state_is_looked_for_in_steps(
    harness: Harness, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    await history(harness, study)
    monkeypatch.setattr(listing, "LOOK", 2)
    found, sizes = await pages(harness, state="failed")
    assert names(found) == ["a/extract"]
    assert sizes == [0, 1, 0]


async def test_what_makes_no_sense_is_refused(harness: Harness, study: Study) -> None:
    await history(harness, study)
    active = await harness.engine.list_jobs(
        principal("test", "other"), backend=None, workspace=None, state="active", code=None, limit=1, cursor=None
    )
    for filters in (
        {"state": "odd"},
        {"code": "odd"},
        {"code": "succeeded", "state": "active"},
        {"code": "initiated", "state": "failed"},
        {"cursor": "!"},
        {"cursor": active.next_cursor},
        {"cursor": "LTE", "state": "active"},
    ):
        wanted: dict[str, Any] = {"backend": None, "workspace": None, "state": None, "code": None, "cursor": None}
        with pytest.raises(Rejected):
            await harness.engine.list_jobs(principal(), limit=5, **wanted | filters)


async def raps_found(harness: Harness, limit: int = 200, **filters: Any) -> tuple[list[str], list[int]]:
    """The workspaces of the RAPs that the filters let through, and the sizes of the pages."""
    wanted: dict[str, Any] = {"backend": None, "workspace": None, "state": None} | filters
    found: list[str] = []
    sizes: list[int] = []
    cursor = None
    while True:
        page = await harness.engine.list_raps(principal("test", "other"), limit=limit, cursor=cursor, **wanted)
        found += [rap.workspace for rap in page.raps]
        sizes.append(len(page.raps))
        cursor = page.next_cursor
        if cursor is None:
            return found, sizes


async def test_raps_are_found_by_creator_and_text(harness: Harness, study: Study) -> None:
    await history(harness, study)
    await harness.create(study.request("query", workspace="e_1", created_by="O'Hara 100% <b>"))
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"created_by": "O'Hara 100% <b>"}, ["e_1"]),
        ({"created_by": "O'Hara"}, []),
        ({"search": "o'hara 100%"}, ["e_1"]),
        ({"search": "%"}, ["e_1"]),
        ({"search": "_"}, ["e_1"]),
        ({"search": "<"}, ["e_1"]),
        ({"search": "ANALYSE"}, ["c"]),
        ({"search": "analyse", "state": "active"}, ["c"]),
        ({"search": "extract", "state": "finished"}, ["b", "a"]),
        ({"search": study.commit[:12], "created_by": "researcher", "backend": "test"}, ["c", "b", "a"]),
        *(({"search": hostile}, []) for hostile in HOSTILE if len(hostile) > 1),
    ]
    for filters, expected in cases:
        assert (await raps_found(harness, **filters))[0] == expected, filters
    assert (await raps_found(harness))[0] == ["e_1", "d", "c", "b", "a"]


async def test_a_rare_text_is_looked_for_in_steps(
    harness: Harness, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    await history(harness, study)
    monkeypatch.setattr(listing, "LOOK_RAPS", 2)
    found, sizes = await raps_found(harness, search="extract")
    assert (found, sizes) == (["d", "b", "a"], [1, 2, 0])


async def test_what_cannot_be_stored_is_not_searched_for(harness: Harness) -> None:
    with pytest.raises(Rejected, match="search"):
        await raps_found(harness, search="\ud800")
