"""The dashboard's pages: for every state of a job, for users and operators, and with hostile names in every place."""

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from common import tokens
from controller.core.codes import StatusCode
from controller.core.errors import Forbidden, NotFound, Rejected
from controller.core.model import JobId
from controller.dialects.ui import templating
from controller.dialects.ui.templating import ENVIRONMENT
from controller.engine.killing import JobKilled
from controller.engine.results import BackendView, OutputView, Page, RapDetail
from controller.engine.tails import LogTail
from tests.dialects.dashboard import (
    BACKEND,
    JOB_ID,
    OPERATOR_TOKEN,
    RAP_ID,
    USER_TOKEN,
    Browser,
    at,
    browsing,
    detail,
    summary,
    world,
)
from tests.dialects.operated import KILLED
from tests.factories import job, later
from tests.fakes.engine import ScriptedEngine

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'`{{7*7}}\u202e\x1b[2J"
PAGES = ("/ui/", "/ui/raps", f"/ui/raps/{RAP_ID}", f"/ui/jobs/{JOB_ID}", f"/ui/jobs/{JOB_ID}/kill")


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(**world())


@pytest.fixture
async def browser(engine: ScriptedEngine) -> AsyncIterator[Browser]:
    async with browsing(engine) as browser:
        await browser.sign_in()
        yield browser


class Elements(HTMLParser):
    """The names of a page's elements and attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.ids: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.names |= {tag, *(f"@{name}" for name, _ in attrs)}
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.text += data


async def page(browser: Browser, path: str, status: int = 200) -> Elements:
    answer = await browser.get(path)
    text = await answer.text()
    assert answer.status == status, text
    found = Elements(text)
    assert len(found.ids) == len(set(found.ids))
    return found


@pytest.mark.parametrize("code", StatusCode)
async def test_every_page_is_there_for_every_code(code: StatusCode) -> None:
    engine = ScriptedEngine(**world(at(code, not_before=later(60) if code is StatusCode.WAITING_ON_NEW_TASK else None)))
    async with browsing(engine) as browser:
        await browser.sign_in()
        for path in PAGES:
            await page(browser, path)


async def test_an_empty_world_has_pages() -> None:
    script = world() | {"backends": [], "agents": [], "queue": [], "list_raps": Page(raps=()), "limits": []}
    async with browsing(ScriptedEngine(**script)) as browser:
        await browser.sign_in()
        assert "opens no backend" in (await page(browser, "/ui/")).text
        assert "There is no RAP yet" in (await page(browser, "/ui/raps")).text


async def test_hostile_names_are_text(engine: ScriptedEngine) -> None:
    value = at(StatusCode.NONZERO_EXIT, message=HOSTILE)
    names = {
        "action": HOSTILE,
        "workspace": HOSTILE,
        "run_command": HOSTILE,
        "needs": (HOSTILE, "x"),
        "branch": HOSTILE,
    }
    value = evolve(value, spec=evolve(value.spec, **names))
    output = OutputView(path=HOSTILE, level=HOSTILE, size=1, sha256="0", excluded=True, message=HOSTILE)
    told = detail(value, outputs=(output,), agent=HOSTILE, exit_code=HOSTILE)
    told = evolve(told, history=tuple(evolve(each, message=HOSTILE) for each in told.history))
    named = dict.fromkeys(("workspace", "created_by", "project", "branch"), HOSTILE)
    rap = summary(**named, requested_actions=(HOSTILE,) * 5)
    agent = evolve(engine.script["agents"][0], id=HOSTILE, executor=HOSTILE, policy=HOSTILE)
    waits = job(StatusCode.WAITING_ON_DEPENDENCIES, id=JobId("b" * 16), action="last", needs=(HOSTILE,))
    runs = job(StatusCode.EXECUTING, id=JobId("c" * 16), action=f"{HOSTILE}2")
    waits = evolve(waits, spec=evolve(waits.spec, needs=(HOSTILE, runs.spec.action)))
    engine.script |= {
        "job_detail": told,
        "rap_detail": RapDetail(rap=rap, jobs=(told, detail(runs, agent=HOSTILE), detail(waits))),
        "list_raps": Page(raps=(rap,)),
        "agents": [agent],
        "log_tail": LogTail(attempt=1, text=HOSTILE, omitted=9, truncated=True),
    }
    allowed = {f"@{name}" for name in ("onerror", "onclick", "style")} | {"img", "iframe", "object"}
    async with browsing(engine) as browser:
        await browser.sign_in()
        for path in (*PAGES, f"/ui/raps?q={HOSTILE}&workspace=%3Cscript%3E&by='"):
            answer = await browser.client.get(path)
            text = await answer.text()
            assert answer.status == 200
            assert not Elements(text).names & allowed
            assert "alert(1)</script>" not in text
            if "?" not in path:  # a field repeats what was typed
                assert "\u202e" not in text
                assert "\x1b" not in text
            assert "49" not in Elements(text).text.replace("2026", "")
        assert "\\u202e" in text or path.startswith("/ui/raps?")


@pytest.mark.parametrize(
    ("said", "words"),
    [("killed", "The job was ended."), ("<script>alert(1)</script>", ""), ("anything", "")],
)
async def test_an_address_cannot_make_a_page_say_anything(browser: Browser, said: str, words: str) -> None:
    answer = await browser.client.get(f"/ui/jobs/{JOB_ID}", params={"said": said})
    text = await answer.text()
    assert words in text
    assert "<script>alert" not in text
    assert (' role="status">The job' in text) is bool(words)


async def test_a_user_is_offered_what_a_user_may_do(engine: ScriptedEngine) -> None:
    async with browsing(engine) as browser:
        await browser.sign_in(OPERATOR_TOKEN)
        of_operator = (await (await browser.get(f"/ui/jobs/{JOB_ID}")).text(), await (await browser.get("/ui/")).text())
    engine.script["session_token"] = tokens.digest(USER_TOKEN)
    engine.calls.clear()
    async with browsing(engine) as browser:
        await browser.sign_in(USER_TOKEN)
        of_user = (await (await browser.get(f"/ui/jobs/{JOB_ID}")).text(), await (await browser.get("/ui/")).text())
        assert (await browser.get("/ui/backends/test/pause")).status == 404
    for action in ("kill", "retry"):
        assert f"/ui/jobs/{JOB_ID}/{action}" in of_operator[0]
        assert f"/ui/jobs/{JOB_ID}/{action}" not in of_user[0]
    assert f"/ui/jobs/{JOB_ID}/cancel" in of_user[0]
    assert "/ui/backends/test/pause" in of_operator[1]
    assert "/ui/backends/test/pause" not in of_user[1]
    assert "limits" not in [name for name, _, _ in engine.calls]


@pytest.mark.parametrize(
    ("error", "status"),
    [(Forbidden("This token may not."), 403), (NotFound("No job"), 404), (Rejected("It has succeeded"), 400)],
)
async def test_what_the_engine_refuses_is_said(
    browser: Browser, engine: ScriptedEngine, error: Exception, status: int
) -> None:
    hidden = await browser.form(f"/ui/jobs/{JOB_ID}/kill")
    engine.script["kill"] = error
    answer = await browser.post(f"/ui/jobs/{JOB_ID}/kill", hidden)
    assert answer.status == status
    assert str(error) in await answer.text()


async def test_a_kill_that_came_too_late_says_so(browser: Browser, engine: ScriptedEngine) -> None:
    engine.script["kill"] = JobKilled(job=KILLED, changed=False)
    answer = await browser.post(f"/ui/jobs/{JOB_ID}/kill", await browser.form(f"/ui/jobs/{JOB_ID}/kill"))
    assert answer.headers["Location"] == f"/ui/jobs/{JOB_ID}?said=over"


async def test_a_retry_knows_the_attempt_that_was_looked_at(browser: Browser, engine: ScriptedEngine) -> None:
    hidden = await browser.form(f"/ui/jobs/{JOB_ID}/retry")
    answer = await browser.post(f"/ui/jobs/{JOB_ID}/retry", hidden)
    assert engine.last_call[2] == {"attempt": 1}
    assert answer.headers["Location"] == "/ui/raps/abcdefgh23456722?said=resubmitted"
    await browser.post(f"/ui/jobs/{JOB_ID}/retry", {**hidden, "attempt": "-1"})
    assert engine.last_call[2] == {"attempt": None}


async def test_cancelling_a_rap_names_what_is_not_finished() -> None:
    jobs = [
        job(StatusCode.SUCCEEDED, id=JobId("b" * 16), action="done"),
        job(StatusCode.EXECUTING, id=JobId("c" * 16), action="runs"),
        job(StatusCode.WAITING_ON_DEPENDENCIES, id=JobId("d" * 16), action="waits"),
    ]
    engine = ScriptedEngine(**world(*jobs))
    async with browsing(engine) as browser:
        await browser.sign_in()
        await browser.post(f"/ui/raps/{RAP_ID}/cancel", await browser.form(f"/ui/raps/{RAP_ID}/cancel"))
    assert engine.last_call[1][1:] == (RAP_ID, ["runs", "waits"])


async def test_an_id_leads_to_its_page(browser: Browser) -> None:
    assert (await browser.get(f"/ui/raps?q={JOB_ID}")).headers["Location"] == f"/ui/jobs/{JOB_ID}"
    assert (await browser.get(f"/ui/raps?q={RAP_ID}")).headers["Location"] == f"/ui/raps/{RAP_ID}"
    assert (await browser.get("/ui/raps?q=" + "z" * 16)).status == 200


async def test_filters_reach_the_engine_and_stay_on_the_next_page(browser: Browser, engine: ScriptedEngine) -> None:
    text = await (await browser.get("/ui/raps?q=a%26b&workspace=w&by=me&backend=test&state=active")).text()
    (asked,) = [named for name, _, named in engine.calls if name == "list_raps"][-1:]
    assert asked == {
        "backend": "test",
        "workspace": "w",
        "state": "active",
        "limit": 50,
        "cursor": None,
        "created_by": "me",
        "search": "a&b",
    }
    assert "/ui/raps?q=a%26b&amp;workspace=w&amp;by=me&amp;backend=test&amp;state=active&amp;cursor=NDI" in text


async def test_a_page_that_is_none_says_so(browser: Browser, engine: ScriptedEngine) -> None:
    engine.script["list_raps"] = Rejected("cursor is not one that this API gave out for these filters")
    assert "Cursor is not one" in (await page(browser, "/ui/raps?cursor=x", 400)).text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"paused": True, "paused_since": later(-90)}, "Paused"),
        (
            {"db_maintenance": True, "db_maintenance_type": "manual", "db_maintenance_since": later(-9)},
            "Database maintenance",
        ),
        ({}, "Working"),
    ],
)
async def test_the_overview_says_how_a_backend_is(
    browser: Browser, engine: ScriptedEngine, changes: dict[str, Any], words: str
) -> None:
    backend: BackendView = evolve(BACKEND, **changes)
    engine.script["backends"] = [backend]
    text = (await page(browser, "/ui/")).text
    assert words in text
    assert "Waiting for a free worker" in text
    assert "4 of 2" in text  # more in use than an operator's new limit
    assert "1 waiting job" in text


async def test_the_end_of_a_log_says_what_is_before_it(browser: Browser, engine: ScriptedEngine) -> None:
    engine.script["log_tail"] = LogTail(attempt=2, text="the end\n", omitted=123_456, truncated=True)
    text = (await page(browser, f"/ui/jobs/{JOB_ID}")).text
    assert "the end" in text
    assert "123,456 before" in text
    engine.script["log_tail"] = LogTail(attempt=1, text="", omitted=0, truncated=False)
    assert "status,+log" in (await page(browser, f"/ui/jobs/{JOB_ID}")).text


@pytest.mark.parametrize(
    "path", ["/ui/jobs/" + "z" * 16, "/ui/raps/" + "z" * 16, "/ui/jobs/NONE", "/ui/raps/%00", "/ui/raps/x'--"]
)
async def test_what_is_not_there_is_a_page(browser: Browser, path: str) -> None:
    await page(browser, path, 404)


async def test_what_a_job_uses_is_drawn(engine: ScriptedEngine) -> None:
    value = evolve(
        at(StatusCode.EXECUTING), metrics={"cpu_mean": 80, "cpu_peak": 190, "mem_mb_mean": 1, "mem_mb_peak": "x"}
    )
    engine.script["job_detail"] = detail(value)
    async with browsing(engine) as browser:
        await browser.sign_in()
        text = await (await browser.get(f"/ui/jobs/{JOB_ID}")).text()
    assert "80 % on average, 190 % at most, of 200 %" in text
    assert text.count('class="plot-line"') == 1
    assert "Memory" not in Elements(text).text.replace("of memory", "")


def test_no_template_trusts_anything() -> None:
    """What comes from a study is escaped because everything is."""
    assert ENVIRONMENT.autoescape is True
    folder = Path(templating.__file__).parent
    for path in (folder / "templates").glob("*.html"):
        assert not re.search(r"\|\s*(safe|tojson)|autoescape|Markup", path.read_text()), path
    for path in folder.glob("*.py"):
        assert "Markup" not in path.read_text(), path


@pytest.mark.parametrize(("code", "seconds"), [(StatusCode.EXECUTING, "every 5s"), (StatusCode.SUCCEEDED, None)])
async def test_what_time_changes_is_fetched_while_it_does(code: StatusCode, seconds: str | None) -> None:
    """A log grows without an event."""
    async with browsing(ScriptedEngine(**world(at(code)))) as browser:
        await browser.sign_in()
        text = await (await browser.get(f"/ui/jobs/{JOB_ID}")).text()
    assert ("every 5s" in text) is (seconds is not None)
    assert 'hx-trigger="sse:change' in text
