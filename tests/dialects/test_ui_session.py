"""Signing in and out of the dashboard, what guards its forms, and the headers of whatever it answers."""

from collections.abc import AsyncIterator, MutableMapping
from http.cookies import SimpleCookie
from typing import Any

import pytest

from common import tokens
from controller.core.errors import Unavailable
from controller.dialects.ui.security import POLICY, form_token
from tests.dialects.dashboard import JOB_ID, OPERATOR, OPERATOR_TOKEN, RAP_ID, SECRET, Browser, browsing, world
from tests.fakes.engine import ScriptedEngine

PAGES = ("/ui/", "/ui/raps", f"/ui/raps/{RAP_ID}", f"/ui/jobs/{JOB_ID}")
QUESTIONS = {
    f"/ui/jobs/{JOB_ID}/cancel": "cancel",
    f"/ui/jobs/{JOB_ID}/kill": "kill",
    f"/ui/jobs/{JOB_ID}/retry": "retry",
    f"/ui/raps/{RAP_ID}/cancel": "cancel",
    "/ui/backends/test/pause": "pause",
    "/ui/backends/test/unpause": "unpause",
}


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(**world())


@pytest.fixture
async def browser(engine: ScriptedEngine) -> AsyncIterator[Browser]:
    async with browsing(engine) as browser:
        yield browser


def called(engine: ScriptedEngine) -> list[str]:
    return [name for name, _, _ in engine.calls]


async def test_a_token_begins_a_session_and_is_in_no_cookie(browser: Browser, engine: ScriptedEngine) -> None:
    answer = await browser.sign_in()
    assert (answer.status, answer.headers["Location"]) == (303, "/ui/")
    (cookie,) = [each for each in answer.headers.getall("Set-Cookie") if each.startswith("rap_session=")]
    morsel = SimpleCookie(cookie)["rap_session"]
    assert morsel.value == SECRET
    assert (morsel["httponly"], morsel["samesite"], morsel["path"], morsel["secure"]) == (True, "Strict", "/ui/", "")
    assert engine.last_call == ("begin_session", (tokens.digest(OPERATOR_TOKEN),), {})
    assert OPERATOR_TOKEN not in str(answer.headers)
    page = await (await browser.get("/ui/")).text()
    assert OPERATOR.name in page


async def test_the_cookie_is_kept_to_https_where_the_page_came_that_way(browser: Browser) -> None:
    hidden = await browser.form("/ui/sign-in")
    answer = await browser.post(
        "/ui/sign-in", {**hidden, "token": OPERATOR_TOKEN}, **{"X-Forwarded-Proto": "HTTPS, http"}
    )
    assert "; Secure" in next(each for each in answer.headers.getall("Set-Cookie") if "rap_session" in each)


@pytest.mark.parametrize("token", ["", "wrong", "rap_" + "x" * 43, "'; DROP TABLE session --", "\x00", "é" * 3000])
async def test_a_wrong_token_begins_nothing(
    browser: Browser, engine: ScriptedEngine, token: str, logs: list[MutableMapping[str, Any]]
) -> None:
    engine.script["recognise"] = None
    answer = await browser.sign_in(token)
    assert answer.status in (403, 413)
    assert "begin_session" not in called(engine)
    assert not token or token not in str(logs)


async def test_a_sign_in_form_of_another_site_begins_nothing(browser: Browser, engine: ScriptedEngine) -> None:
    hidden = await browser.form("/ui/sign-in")
    for fields, headers in (
        ({"token": OPERATOR_TOKEN}, {}),
        ({"token": OPERATOR_TOKEN, "csrf": "0" * 64}, {}),
        ({"token": OPERATOR_TOKEN, **hidden}, {"Sec-Fetch-Site": "cross-site"}),
    ):
        assert (await browser.post("/ui/sign-in", fields, **headers)).status == 403
    assert "begin_session" not in called(engine)


@pytest.mark.parametrize(
    ("back", "place"),
    [
        (f"/ui/raps/{RAP_ID}?x=1", f"/ui/raps/{RAP_ID}?x=1"),
        ("https://evil.example/", "/ui/"),
        ("//evil.example/", "/ui/"),
        ("/ui//evil.example", "/ui/"),
        ("/ui/\\evil", "/ui/"),
        ("/ui/\r\nSet-Cookie: a=b", "/ui/"),
        ("/ui/sign-in", "/ui/"),
    ],
)
async def test_a_sign_in_leads_to_pages_of_ours_only(browser: Browser, back: str, place: str) -> None:
    assert (await browser.sign_in(back=back)).headers["Location"] == place


@pytest.mark.parametrize("path", [*PAGES, *QUESTIONS, "/ui/events"])
async def test_nothing_is_shown_to_nobody(browser: Browser, engine: ScriptedEngine, path: str) -> None:
    answer = await browser.get(path)
    assert answer.status == 303
    assert answer.headers["Location"].startswith("/ui/sign-in")
    assert called(engine) == []


async def test_whoever_signs_in_gets_where_they_wanted(browser: Browser) -> None:
    asked = await browser.get(f"/ui/raps/{RAP_ID}")
    assert (await browser.form(asked.headers["Location"]))["back"] == f"/ui/raps/{RAP_ID}"


async def test_a_link_from_another_site_is_asked_again_from_here(browser: Browser) -> None:
    """A strict cookie is not sent with it, so that whoever is signed in would look signed out."""
    answer = await browser.get(f"/ui/raps/{RAP_ID}", **{"Sec-Fetch-Site": "cross-site"})
    assert answer.status == 200
    assert f'href="/ui/raps/{RAP_ID}"' in await answer.text()


@pytest.mark.parametrize(("found", "holder"), [(None, None), (tokens.digest("was revoked"), None)])
async def test_a_session_ends_with_its_token(
    browser: Browser, engine: ScriptedEngine, found: bytes | None, holder: None
) -> None:
    await browser.sign_in()
    assert (await browser.get("/ui/")).status == 200
    engine.script |= {"session_token": found, "recognise": holder}
    assert (await browser.get("/ui/")).status == 303
    hidden = {"csrf": form_token(SECRET)}
    engine.calls.clear()
    assert (await browser.post(f"/ui/jobs/{JOB_ID}/kill", hidden)).status == 303
    assert "kill" not in called(engine)


async def test_signing_out_ends_the_session(browser: Browser, engine: ScriptedEngine) -> None:
    await browser.sign_in()
    assert (await browser.post("/ui/sign-out", {})).status == 403
    assert "end_session" not in called(engine)
    answer = await browser.post("/ui/sign-out", {"csrf": form_token(SECRET)})
    assert (answer.status, answer.headers["Location"]) == (303, "/ui/sign-in")
    assert engine.last_call == ("end_session", (SECRET,), {})
    assert (await browser.get("/ui/")).status == 303


@pytest.mark.parametrize("path", QUESTIONS)
async def test_a_question_changes_nothing_and_its_form_does(
    browser: Browser, engine: ScriptedEngine, path: str
) -> None:
    await browser.sign_in()
    hidden = await browser.form(path)
    assert QUESTIONS[path] not in called(engine)
    answer = await browser.post(path, hidden)
    assert answer.status == 303
    assert QUESTIONS[path] in called(engine)
    landed = await browser.get(answer.headers["Location"])
    assert landed.status in (200, 404)  # the RAP of a retry is not known to the script


FORGED: tuple[tuple[dict[str, str], dict[str, str]], ...] = (
    ({}, {}),
    ({"csrf": ""}, {}),
    ({"csrf": "0" * 64}, {}),
    ({"csrf": "é"}, {}),
    ({"csrf": form_token("t" * 43)}, {}),
    ({"csrf": form_token(SECRET)}, {"Sec-Fetch-Site": "cross-site"}),
    ({"csrf": form_token(SECRET)}, {"Sec-Fetch-Site": "same-site"}),
)


@pytest.mark.parametrize("path", QUESTIONS)
async def test_a_form_that_is_not_of_this_session_changes_nothing(
    browser: Browser, engine: ScriptedEngine, path: str
) -> None:
    await browser.sign_in()
    for fields, headers in FORGED:
        assert (await browser.post(path, fields, **headers)).status == 403
    assert QUESTIONS[path] not in called(engine)


@pytest.mark.parametrize(("body", "status"), [(b"\xff\xfe", 400), (b"a=1&" * 30, 400), (b"x" * 9000, 413)])
async def test_a_form_that_is_none_is_refused(browser: Browser, body: bytes, status: int) -> None:
    await browser.sign_in()
    answer = await browser.client.post(f"/ui/jobs/{JOB_ID}/kill", data=body)
    assert answer.status == status


async def test_a_token_in_a_header_opens_no_page(browser: Browser) -> None:
    """What a browser sends by itself, and what a program sends, do not mix."""
    assert (await browser.get("/ui/", Authorization=f"Bearer {OPERATOR_TOKEN}")).status == 303


@pytest.mark.parametrize(
    "path",
    [
        *PAGES,
        *QUESTIONS,
        "/ui/sign-in",
        "/ui/nothing",
        "/ui/raps/none",
        "/ui/jobs/" + "z" * 16,
        "/ui/static/0/style.css",
    ],
)
async def test_every_answer_has_the_policy(browser: Browser, path: str) -> None:
    for _ in range(2):
        answer = await browser.get(path)
        assert answer.headers["Content-Security-Policy"] == POLICY
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        await browser.sign_in()


async def test_a_bug_and_an_outage_are_pages_with_the_policy(browser: Browser, engine: ScriptedEngine) -> None:
    await browser.sign_in()
    engine.script["backends"] = RuntimeError("a bug")
    bug = await browser.get("/ui/")
    engine.script["backends"] = Unavailable("the database is away")
    away = await browser.get("/ui/")
    assert (bug.status, away.status) == (500, 503)
    assert bug.headers["Content-Security-Policy"] == away.headers["Content-Security-Policy"] == POLICY
    assert "Retry-After" in away.headers
    assert "a bug" not in await bug.text()


async def test_no_page_has_anything_inline_or_of_another_host(browser: Browser) -> None:
    await browser.sign_in()
    for path in (*PAGES, *QUESTIONS, "/ui/sign-in"):
        text = await (await browser.get(path)).text()
        assert " style=" not in text
        assert "<style" not in text
        assert " onclick" not in text
        assert text.count("<script") == text.count('<script src="/ui/static/')
        assert "//" not in text.replace("<!doctype", "")


async def test_static_files_may_be_kept_for_ever(browser: Browser) -> None:
    text = await (await browser.get("/ui/sign-in")).text()
    paths = {part.split('"')[0] for part in text.split('"') if part.startswith("/ui/static/")}
    assert len(paths) == 6
    for path in paths:
        answer = await browser.get(path)
        assert answer.status == 200
        assert "immutable" in answer.headers["Cache-Control"]
        assert (await answer.read()).strip()


async def test_the_name_without_a_slash_leads_on(browser: Browser) -> None:
    answer = await browser.get("/ui")
    assert (answer.status, answer.headers["Location"]) == (308, "/ui/")
