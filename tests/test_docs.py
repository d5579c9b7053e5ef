"""The documentation is true where a machine can tell: links, the state diagram, commands, settings, examples."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import agent.settings
import controller.settings
from cli.main import rap
from common.environ import Environ
from controller.core.codes import StatusCode
from controller.core.machine import TRANSITIONS
from controller.dialects.rap import wire
from scripts import state_diagram

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(path for path in (ROOT / "examples").rglob("*.md") if ".venv" not in path.parts),
    ]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```\w*\n(.*?)^```|`([^`\n]+)`", re.MULTILINE | re.DOTALL)
BODY = re.compile(r'/rap/(create|cancel|status)/"[^\']*-d \'(\{.*?\})\'', re.DOTALL)
VARIABLE = re.compile(r"\b(?:RAP_[A-Z_]+|[A-Z]+_PRIVACY_[A-Z_]+|CONTROLLER_[A-Z_]+|ALLOWED_[A-Z_]+)\b")

OF_THE_COMMAND_LINE = {"RAP_URL", "RAP_TOKEN"}
PLACEHOLDERS = {"RAP_ID"}


def test_there_are_pages() -> None:
    assert {"README.md", "CHANGELOG.md", "docs/index.md", "docs/architecture.md"} <= set(NAMES)


def anchors(page: Path) -> set[str]:
    """The anchors that a forge makes of the page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert not broken


def test_contents_of_operations_are_its_headings_in_order() -> None:
    page = FENCE.sub("", (ROOT / "docs" / "operations.md").read_text())
    headings = re.findall(r"^(##+) (.+)$", page, re.MULTILINE)
    listed = re.findall(r"^( *)- \[([^\]]+)\]\(#[^)]+\)$", page, re.MULTILINE)
    assert [("##" + "#" * (len(indent) // 2), title) for indent, title in listed] == headings


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen:
            continue
        seen.add(page)
        links = (link.partition("#")[0] for link in LINK.findall(page.read_text()))
        todo += [target for link in links if (target := (page.parent / link).resolve()) in PAGES]
    assert set(PAGES) - seen == set()


def test_state_diagram_is_current() -> None:
    page = state_diagram.PAGE.read_text()
    assert state_diagram.renew(page) == page, "run: python scripts/state_diagram.py"


def test_state_diagram_shows_every_move() -> None:
    section = state_diagram.print_section()
    for (state, event), (_, targets) in TRANSITIONS.items():
        for target in targets:
            assert re.search(rf"{state} --> {target}: .*\b{event.__name__}\b", section)
    shown = set(re.findall(r"`(\w+)`", section))
    assert {code.value for code in StatusCode} - shown == {"created"}  # the code that a job begins with


def test_stale_diagram_is_noticed() -> None:
    page = state_diagram.PAGE.read_text()
    changed = page.replace("pending --> running: Started", "pending --> running: Begun")
    assert changed != page
    assert state_diagram.renew(changed) == page
    with pytest.raises(state_diagram.MissingMarkersError):
        state_diagram.renew("# A page without markers\n")


def test_state_diagram_script_runs_by_itself() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/state_diagram.py", "--check"], cwd=ROOT, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def each_command_line() -> Iterator[tuple[str, str]]:
    """(page, the line from `rap` on) for every use of the command in code on the pages."""
    for name, page in zip(NAMES, PAGES, strict=True):
        for block, inline in CODE.findall(page.read_text()):
            for line in (block or inline).splitlines():
                if used := re.match(r"\s*(rap [a-z].*)", line.partition("#")[0]):
                    yield name, used[1].strip()


COMMAND_LINES = sorted(set(each_command_line()))


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES)
def test_commands_exist_with_their_options(page: str, line: str) -> None:
    words = line.split()
    context = click.Context(rap)
    assert words[1] in rap.list_commands(context), f"{page}: {line}"
    command = rap.get_command(context, words[1])
    if isinstance(command, click.Group):
        command = command.get_command(context, words[2] if len(words) > 2 else "") or command
    assert command is not None
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word.strip("[]").partition("=")[0] for word in words if word.lstrip("[").startswith("--")} <= known


def test_command_lines_were_found() -> None:
    assert {line.split()[1] for _, line in COMMAND_LINES} >= {
        "up",
        "submit",
        "status",
        "agent",
        "controller",
        "migrate",
    }


def test_settings_exist() -> None:
    environ = Environ({})
    controller.settings.read(environ)
    agent.settings.read(environ)
    known = set(environ.asked) | OF_THE_COMMAND_LINE | PLACEHOLDERS
    unknown = {
        f"{name}: {variable}"
        for name, page in zip(NAMES, PAGES, strict=True)
        for block, inline in CODE.findall(page.read_text())
        for variable in VARIABLE.findall(block or inline)
        if variable not in known
    }
    assert not unknown


@pytest.mark.parametrize("name", ["README.md", "docs/connect-a-portal.md"])
def test_request_bodies_fit_the_contract(name: str) -> None:
    shapes = {"create": wire.CreateRap, "cancel": wire.CancelRap, "status": wire.StatusOfRaps}
    bodies = BODY.findall((ROOT / name).read_text())
    assert {operation for operation, _ in bodies} == set(shapes)
    for operation, body in bodies:
        wire.SHAPES[shapes[operation]].check(json.loads(body))


def test_status_example_has_the_keys_of_a_job() -> None:
    page = (ROOT / "docs" / "connect-a-portal.md").read_text()
    (example,) = (json.loads(block) for block, _ in CODE.findall(page) if block.startswith('{"jobs"'))
    (job,) = example["jobs"]
    jobs = wire.CONTRACT.document["components"]["schemas"]["job"]
    assert set(job) == set(jobs["properties"])
    assert StatusCode(job["status_code"]).state == job["status"]


def test_no_page_names_this_machine() -> None:
    for name, page in zip(NAMES, PAGES, strict=True):
        assert not re.search(r"(?<![\w:/.])/(work|root|tmp/v)\b", page.read_text()), name
