"""project.yaml out of a real repository."""

import asyncio
from pathlib import Path

import pytest

from controller.core.errors import InvalidProject, SourceError
from controller.sources.git import FileTooLarge, Git
from controller.sources.project_file import ProjectFiles, parse_file
from tests.sources.repositories import Repository, source

GOOD = b"""\
version: '4'
actions:
  extract:
    run: ehrql:v1 generate-dataset d.py --output output/d.csv
    outputs:
      highly_sensitive:
        data: output/d.csv
  fig:
    run: python:v2 python fig.py
    needs: [extract]
    outputs:
      moderately_sensitive:
        yes: output/*.png
"""


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "github")


@pytest.fixture
def git(tmp_path: Path) -> Git:
    return source(tmp_path / "github", tmp_path / "work", allow_local=True)


async def test_a_project(git: Git, repository: Repository) -> None:
    commit = repository.commit({"project.yaml": GOOD})
    for url in (repository.url, str(repository.path)):
        found = await ProjectFiles(git).load(url, commit)
        assert list(found.actions) == ["extract", "fig"]
        assert found.actions["fig"].outputs == {"moderately_sensitive": {"yes": "output/*.png"}}


async def test_a_commit_is_read_once(git: Git, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ProjectFiles(git)
    commit = repository.commit({"project.yaml": GOOD})
    reads = []
    read_file = git.read_file

    async def noted(*args: object) -> bytes | None:
        reads.append(args)
        return await read_file(*args)  # type: ignore[arg-type]  handed through as they came

    monkeypatch.setattr(git, "read_file", noted)
    found = await asyncio.gather(*(files.load(repository.url, commit) for _ in range(5)))
    assert await files.load(repository.url, commit) is found[0]
    assert len(reads) == 1
    await files.load(repository.url, repository.commit({"project.yaml": GOOD + b"#"}))
    assert len(reads) == 2


async def test_no_project_file(git: Git, repository: Repository) -> None:
    commit = repository.commit({"project.yml": GOOD})
    with pytest.raises(SourceError, match=rf"^No project\.yaml file found in {repository.url}$"):
        await ProjectFiles(git).load(repository.url, commit)


async def test_a_project_file_that_is_too_large(git: Git, repository: Repository) -> None:
    commit = repository.commit({"project.yaml": b"#" * (10 << 20)})
    with pytest.raises(FileTooLarge, match="has 10485760 bytes, more than the limit of 1048576"):
        await ProjectFiles(git).load(repository.url, commit)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "The project file is empty"),
        (b"- a", "The project file must be a mapping of names to values, not a list"),
        (b"version: 4\nversion: 4", "found duplicate key 'version' (first in line 1) (line 2, column 1)"),
        (b"\xff", "not UTF-8 text: byte 0xff in line 1"),
        (b"version: 6\nactions: {}", "`version` must be a number between 1 and 5"),
    ],
)
def test_errors_are_whole_sentences_for_the_user(body: bytes, text: str) -> None:
    with pytest.raises(InvalidProject) as caught:
        parse_file(body)
    assert str(caught.value).startswith(f"Invalid project: \n{text}")


async def test_invalid_projects_are_told_every_time(git: Git, repository: Repository) -> None:
    files = ProjectFiles(git)
    commit = repository.commit({"project.yaml": b"["})
    for _ in range(2):
        with pytest.raises(InvalidProject):
            await files.load(repository.url, commit)
    await files.close()
