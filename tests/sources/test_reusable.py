"""Reusable actions out of real repositories (reference section 4.7)."""

from pathlib import Path

import pytest

from controller.core.errors import SourceError
from controller.core.model import ReusableAction
from controller.core.plan import ReusableUse
from controller.sources.reusable import ReusableActions
from tests.sources.repositories import Repository, source

NAME = "opensafely-actions/report"
URL = f"https://github.com/{NAME}"
ACTION = {"action.yaml": b"run: python:v2 python main.py\n"}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "github", NAME)


@pytest.fixture
def actions(tmp_path: Path) -> ReusableActions:
    return ReusableActions(source(tmp_path / "github", tmp_path / "work"))


def use(version: str = "v1", name: str = "report", action: str = "mine") -> ReusableUse:
    return ReusableUse(action=action, image_name=name, image_version=version)


async def fault(actions: ReusableActions, *uses: ReusableUse) -> str:
    with pytest.raises(SourceError) as caught:
        await actions.resolve(uses)
    return str(caught.value)


@pytest.mark.parametrize("annotated", [True, False])
async def test_a_tag_on_main(actions: ReusableActions, repository: Repository, annotated: bool) -> None:
    commit = repository.commit(ACTION)
    repository.git("tag", *(["-a", "-m", "x"] if annotated else []), "v1", commit)
    repository.commit({"action.yaml": b"run: python:v2 later"})
    found = (await actions.resolve([use()]))["report:v1"]
    assert found.source == ReusableAction(repo_url=URL, commit=commit)
    assert (found.command.image, found.command.args) == ("python:v2", ("python", "main.py"))


async def test_several_images(actions: ReusableActions, repository: Repository) -> None:
    for version in ("v1", "v2"):
        repository.git("tag", version, repository.commit({"action.yaml": f"run: r:v1 {version}".encode()}))
    found = await actions.resolve([use("v1"), use("v2")])
    assert {image: answer.command.args for image, answer in found.items()} == {
        "report:v1": ("v1",),
        "report:v2": ("v2",),
    }
    assert await actions.resolve([]) == {}


async def test_a_tag_that_moved_is_seen(actions: ReusableActions, repository: Repository) -> None:
    repository.git("tag", "v1", repository.commit(ACTION))
    await actions.resolve([use()])
    commit = repository.commit({"action.yaml": b"run: r:v1 new"})
    repository.git("tag", "-f", "v1", commit)
    assert (await actions.resolve([use()]))["report:v1"].source.commit == commit


async def test_no_repository(actions: ReusableActions) -> None:
    assert await fault(actions, use()) == f"in 'mine: report:v1' could not find a repo at {URL}"


async def test_no_tag(actions: ReusableActions, repository: Repository) -> None:
    repository.commit(ACTION, branch="main")
    repository.git("branch", "v1", "main")
    assert await fault(actions, use()) == f"in 'mine: report:v1' 'v1' is not a tag listed in {URL}/tags"


async def test_not_on_main(actions: ReusableActions, repository: Repository) -> None:
    repository.git("tag", "v1", repository.commit(ACTION, branch="work"))
    text = "in 'mine: report:v1' tag 'v1' has not yet been approved for use (not merged into main branch)"
    assert await fault(actions, use()) == text
    repository.commit(ACTION | {"x": b""}, branch="main")
    assert await fault(actions, use()) == text


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (None, "no action.yaml file found"),
        (b"[", "line"),
        (b"", "action.yaml must be a mapping"),
        (b"name: x", "action.yaml has no `run`"),
        (b"run: 3", "`run` must be a command line, not 3"),
        (b"run: python x", "Action command python must have a version"),
        (b"run: other-action:v1 x", "must use an image of the platform, not other-action"),
        (b"run: sqlrunner:v1 x", "may not access the database"),
        (b"run: ehrql:v1 generate-dataset x", "may not access the database"),
        (b"#" * 100_000, "more than the limit of 65536"),
    ],
)
async def test_invalid_actions(
    actions: ReusableActions, repository: Repository, body: bytes | None, detail: str
) -> None:
    files = {"README": b""} if body is None else {"action.yaml": body}
    repository.git("tag", "v1", repository.commit(files))
    text = await fault(actions, use())
    assert text.startswith(f"in 'mine: report:v1' invalid action, please open an issue on {URL}/issues: ")
    assert detail in text


@pytest.mark.parametrize("name", ["../x", "a/b", "a.b", "-", "a b", "ä", ""])
async def test_names(actions: ReusableActions, name: str) -> None:
    text = await fault(actions, use(name=name))
    if name != "-":
        assert text == f"in 'mine: {name}:v1' '{name}' contains invalid characters"


async def test_the_first_fault_is_told(actions: ReusableActions, repository: Repository) -> None:
    repository.git("tag", "v1", repository.commit(ACTION))
    text = await fault(actions, use(), use("v2", action="b"), use("v3", action="c"))
    assert text.startswith("in 'b: report:v2' ")
