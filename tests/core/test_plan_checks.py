"""Checks of a request before anything is looked up, and permissions (reference sections 4.2, 4.5)."""

import json

import pytest

from controller.core.errors import Rejected, SourceError
from controller.core.permissions import analysis_scope, ehrql_permissions
from controller.core.request_checks import check_branch, check_repo_url, check_workspace, shown

ORGS = ("opensafely", "opensafely-actions")


def url_fault(url: str, *, allow_local: bool = False) -> str:
    with pytest.raises(SourceError) as caught:
        check_repo_url(url, allowed_orgs=ORGS, allow_local=allow_local)
    return str(caught.value)


@pytest.mark.parametrize("name", ["ws", "my-work_space-2", "A", "-"])
def test_workspaces_that_pass(name: str) -> None:
    check_workspace(name)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "ä", "a\n", "a.b"])
def test_workspaces_that_fail(name: str) -> None:
    with pytest.raises(Rejected, match=r"^Invalid workspace name \(allowed are alphanumeric, dash and underscore\)$"):
        check_workspace(name)


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/opensafely/study",
        "https://github.com/opensafely/study/",
        "https://github.com/opensafely/study//",
        "https://github.com/opensafely-actions/a.b_c-d",
    ],
)
def test_urls_that_pass(url: str) -> None:
    check_repo_url(url, allowed_orgs=ORGS, allow_local=False)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://github.com/opensafely/study",
        "git@github.com:opensafely/study",
        "https://github.com.evil.org/opensafely/study",
        "https://github.comm/opensafely/study",
        "https://github.com:443/opensafely/study",
        "https://evil.org/github.com/opensafely/study",
        "ext::sh -c x",
        "--upload-pack=x",
        "/srv/study",
        "file:///srv/study",
    ],
)
def test_urls_of_other_places(url: str) -> None:
    assert url_fault(url) == f"Repository URL {url} does not start with https://github.com"


@pytest.mark.parametrize(
    "path", ["", "/", "/other/study", "/Opensafely/study", "/opensafely%2f/study", "/opensafely?x"]
)
def test_urls_of_other_organisations(path: str) -> None:
    url = f"https://github.com{path}"
    assert url_fault(url) == (
        f"Repository {url} does not belong to one of the following Github organisations: opensafely opensafely-actions"
    )


@pytest.mark.parametrize(
    "path",
    ["", "/", "/a/b", "/..", "/.", "/a b", "/a?x=1", "/a#b", "/a%2fb"],
)
def test_urls_of_another_form(path: str) -> None:
    url = f"https://github.com/opensafely{path}"
    assert url_fault(url) == (
        f"Repository {url} was not of the expected format: https://github.com/[organisation]/[project-name]"
    )
    assert "expected format" in url_fault("https://github.com//opensafely/study")


def test_local_repositories_only_where_allowed() -> None:
    check_repo_url("/srv/study", allowed_orgs=ORGS, allow_local=True)
    check_branch("/srv/study", "", allow_local=True)
    assert "does not start with" in url_fault("srv/study", allow_local=True)
    check_branch("https://github.com/opensafely/study", "main", allow_local=False)
    for allow_local in (True, False):
        with pytest.raises(SourceError, match=r"^A branch name must be supplied$"):
            check_branch("https://github.com/opensafely/study", "", allow_local=allow_local)


def test_errors_show_no_password_and_no_control_character() -> None:
    assert "secret" not in url_fault("https://user:se/secret@github.com/opensafely/study")
    assert shown("a\x1b[2J\ud800") == "a\\x1b[2J\\ud800"
    assert len(shown("x" * 10_000)) == 300


def test_scope_of_a_job_without_database_is_empty() -> None:
    asked = {"dataset_permissions": ["icnarc"]}
    assert analysis_scope(asked, project="p", requires_db=False, event_level_projects=["p"]) == {}


def test_scope_of_a_database_job() -> None:
    def scope(asked: dict[str, list[str]], project: str = "p") -> dict[str, tuple[str, ...]]:
        return analysis_scope(asked, project=project, requires_db=True, event_level_projects=["echo"])

    assert scope({}) == {"dataset_permissions": ()}
    assert scope({"dataset_permissions": ["ukrr", "icnarc"]}) == {"dataset_permissions": ("icnarc", "ukrr")}
    assert scope({"population_permissions": ["b", "a"], "new": ["x"]}) == {
        "dataset_permissions": (),
        "population_permissions": ("b", "a"),
        "new": ("x",),
    }
    assert scope({}, "echo")["component_access"] == ("event_level_data",)
    assert scope({"component_access": ["z", "event_level_data"]}, "echo")["component_access"] == (
        "event_level_data",
        "z",
    )
    assert scope({"component_access": ["z", "b"]})["component_access"] == ("z", "b")


def test_ehrql_permissions_are_one_list_however_the_scope_was_stored() -> None:
    scope = {"population_permissions": ["include_t1oo"], "dataset_permissions": ["icnarc", "ukrr"]}
    assert json.loads(ehrql_permissions(scope)) == ["icnarc", "ukrr", "include_t1oo"]
    assert ehrql_permissions(dict(reversed(scope.items()))) == ehrql_permissions(scope)
    assert ehrql_permissions({}) == "[]"


def test_a_workspace_that_no_folder_could_be_named_after_is_refused() -> None:
    check_workspace("w" * 255)
    with pytest.raises(Rejected, match="it has 256 characters, at most 255 are allowed"):
        check_workspace("w" * 256)
