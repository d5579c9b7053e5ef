"""The dashboard in a real browser, on a real controller: what changes is shown without loading the page anew."""

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from attrs import define, field
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, Request, async_playwright, expect

from common.clock import SystemClock
from common.protocol import Declaration
from controller.app import controller, make_runner
from controller.settings import from_environ
from tests.engine.conftest import Harness, Study

OPERATOR, FOREIGN = "operator-token-of-test", "client-token-of-other"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
expect.set_options(timeout=20_000)  # a busy machine is no fault of the page
VIEWS = {"light": (1280, 900), "dark": (1280, 900), "phone": (390, 844)}


@define
class Site:
    """A controller on a socket, and its engine to play portal and agent with."""

    url: str
    harness: Harness


@define
class Visit:
    """A page of somebody, and everything in it that should not be."""

    page: Page
    url: str
    faults: list[str] = field(factory=list)

    async def sign_in(self, token: str) -> None:
        await self.page.goto(f"{self.url}/ui/")
        await self.page.get_by_label("Token").fill(token)
        await self.page.get_by_role("button", name="Sign in").click()
        await expect(self.page.get_by_role("heading", name="Overview")).to_be_visible()

    async def look(self) -> None:
        """Nothing is hard to use for anybody, nor wider than the screen."""
        found = await Axe().run(self.page)
        assert found.violations_count == 0, found.generate_report()
        width = await self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert width <= 0, self.page.url


@pytest.fixture
async def site(database_dsn: str, tmp_path: Path) -> AsyncIterator[Site]:
    settings = from_environ(
        {
            "RAP_DATABASE_URL": database_dsn,
            "BACKENDS": "test,other",
            "TEST_OPERATOR_TOKENS": OPERATOR,
            "OTHER_CLIENT_TOKENS": FOREIGN,
            "ALLOW_LOCAL_GIT_REPOS": "true",
            "WORKDIR": str(tmp_path / "controller"),
        }
    )
    async with controller(settings, SystemClock(), os.environ) as made:
        runner = make_runner(made.app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        harness = Harness(made.engine, made.engine._ctx, SystemClock())  # type: ignore[arg-type]  # never cranked
        await made.engine.declare_agent("test", harness.agent, Declaration(version="1", executor="fake", slots=10))
        yield Site(f"http://{host}:{port}", harness)
        await runner.cleanup()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        await browser.close()


async def visit(browser: Browser, site: Site, view: str = "light") -> Visit:
    width, height = VIEWS[view]
    context = await browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if view == "dark" else "light"
    )
    made = Visit(await context.new_page(), site.url)

    def asked(request: Request) -> None:
        if not request.url.startswith((site.url, "data:")):
            made.faults.append(f"asked {request.url}")

    made.page.on("console", lambda message: made.faults.append(f"{message.type}: {message.text}"))
    made.page.on("pageerror", lambda error: made.faults.append(str(error)))
    made.page.on("request", asked)
    return made


async def test_an_operator_watches_and_acts(browser: Browser, site: Site, study: Study) -> None:
    harness = site.harness
    seen = await visit(browser, site)
    page = seen.page
    await seen.sign_in(OPERATOR)
    request = study.request("report")
    await harness.create(request)
    await expect(page.get_by_role("link", name=request.rap_id)).to_be_visible()  # it comes by itself
    await page.get_by_role("link", name=request.rap_id).click()
    jobs = {action: job.id for action, job in (await harness.jobs(request.rap_id)).items()}
    await page.evaluate("window.same = true")

    (task,) = await harness.claim(wait=10)
    await harness.report(task, "executing")
    extract = page.locator(f"#node-{jobs['extract']}")
    await expect(extract).to_have_attribute("aria-label", "extract Running: Executing")
    await expect(page.locator(".answer")).to_contain_text("extract is at work")
    await harness.finish(task)
    await expect(extract).to_have_attribute("aria-label", "extract Succeeded")
    for task in await harness.claim(wait=10):
        await harness.report(task, "executing")
    await expect(page.locator(f"#node-{jobs['analyse']}")).to_have_attribute("aria-label", "analyse Running: Executing")
    assert await page.evaluate("window.same") is True  # it was never loaded anew
    await seen.look()

    await page.locator(f"#job-{jobs['count']}").get_by_role("link", name="count").click()
    await page.get_by_role("link", name="Cancel").click()
    await expect(page.get_by_role("heading", name="Cancel this job?")).to_be_visible()
    assert (await harness.codes(request.rap_id))["count"] == "executing"
    await page.get_by_role("button", name="Cancel the job").click()
    await expect(page.locator(".headline")).to_contain_text("Cancelled")
    assert (await harness.codes(request.rap_id))["count"] == "cancelled_by_user"
    assert (await harness.codes(request.rap_id))["report"] == "dependency_failed"

    await page.goto(f"{site.url}/ui/jobs/{jobs['analyse']}")
    await page.get_by_role("link", name="Kill").click()
    await page.get_by_role("button", name="Kill the job").click()
    await page.get_by_role("link", name="Retry").click()
    await page.get_by_role("button", name="Retry the job").click()
    await expect(page.get_by_role("status").first).to_contain_text("runs its action again")
    again = page.url.split("/")[-1].split("?")[0]
    assert set(await harness.jobs(again)) == {"analyse"}

    await page.get_by_role("link", name="Overview", exact=True).click()
    await page.get_by_role("link", name="Pause… test").click()
    await page.get_by_role("button", name="Pause the backend").click()
    await expect(page.get_by_role("region", name="test")).to_contain_text("Paused")
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("Token")).to_be_visible()
    assert seen.faults == []


async def test_a_foreign_token_sees_only_its_own(browser: Browser, site: Site, study: Study) -> None:
    request = study.request("extract")
    await site.harness.create(request)
    job = (await site.harness.jobs(request.rap_id))["extract"]
    seen = await visit(browser, site)
    await seen.sign_in(FOREIGN)
    content = await seen.page.content()
    assert request.rap_id not in content
    assert "backend-test" not in content
    seen.faults.clear()
    for path in (f"raps/{request.rap_id}", f"jobs/{job.id}", f"jobs/{job.id}/cancel", "backends/test/pause"):
        answer = await seen.page.goto(f"{site.url}/ui/{path}")
        assert answer is not None
        assert answer.status == 404, path
    await seen.page.goto(f"{site.url}/ui/raps?q={request.rap_id}")
    await expect(seen.page.locator(".empty")).to_be_visible()
    answer = await seen.page.context.request.post(f"{site.url}/ui/jobs/{job.id}/cancel", form={"csrf": "0" * 64})
    assert answer.status == 403
    stream = await seen.page.context.request.get(f"{site.url}/ui/events?rap={request.rap_id}")
    assert stream.status == 404


@pytest.mark.parametrize("view", VIEWS)
async def test_every_page_can_be_used_by_everybody(browser: Browser, site: Site, study: Study, view: str) -> None:
    harness = site.harness
    request = study.request()
    await harness.create(request)
    for place, task in enumerate(await harness.claim(wait=10)):
        await harness.finish(task, exit_code=place)  # one succeeds, one does not
    jobs = await harness.jobs(request.rap_id)
    seen = await visit(browser, site, view)
    await seen.page.goto(f"{site.url}/ui/sign-in")
    await seen.look()
    await seen.sign_in(OPERATOR)
    of_jobs = [f"jobs/{jobs[action].id}" for action in ("extract", "query", "report")]
    for path in ("", "raps", f"raps/{request.rap_id}", *of_jobs, f"{of_jobs[2]}/kill"):
        await seen.page.goto(f"{site.url}/ui/{path}")
        await seen.look()
    assert seen.faults == []


async def test_it_works_by_keyboard_alone(browser: Browser, site: Site, study: Study) -> None:
    request = study.request("extract")
    await site.harness.create(request)
    seen = await visit(browser, site)
    page = seen.page
    await page.goto(f"{site.url}/ui/raps/{request.rap_id}")
    await page.keyboard.type(OPERATOR)  # the field has the focus
    await page.keyboard.press("Enter")
    await expect(page.locator(".answer")).to_be_visible()  # where they wanted to go
    await page.keyboard.press("Tab")
    await expect(page.locator(":focus")).to_have_text("Skip to the content")
    await page.keyboard.press("Enter")
    job = (await site.harness.jobs(request.rap_id))["extract"]
    for _ in range(20):
        await page.keyboard.press("Tab")
        if await page.locator(":focus").get_attribute("id") == f"node-{job.id}":
            break
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="extract", exact=True)).to_be_visible()
    assert seen.faults == []
