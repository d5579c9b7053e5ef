"""Every rule of reference section 4.3, by table: what is valid, what is not, and in which words."""

import contextlib
import copy
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.errors import InvalidProject
from controller.core.project import parse

FIGURE = {"run": "python:v2 python fig.py", "outputs": {"moderately_sensitive": {"fig": "output/fig.png"}}}


def project(version: object = 4, **actions: Any) -> dict[str, Any]:
    return {"version": version, "actions": actions or {"fig": FIGURE}}


def action(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = copy.deepcopy(FIGURE)
    made.update(changes)
    return made


def fault(data: object) -> str:
    with pytest.raises(InvalidProject) as caught:
        parse(data)
    text = str(caught.value)
    assert text.startswith("Invalid project: \n")
    return text.removeprefix("Invalid project: \n")


def test_a_project_keeps_order_needs_and_outputs() -> None:
    found = parse(
        project(
            extract={
                "run": "ehrql:v1 generate-dataset dataset.py --output output/data.csv.gz",
                "outputs": {"highly_sensitive": {"data": "output/data.csv.gz"}},
            },
            fig=action(needs=["extract", "extract"], dummy_data_file="x.csv"),
        )
    )
    assert list(found.actions) == ["extract", "fig"]
    fig = found.actions["fig"]
    assert fig.needs == ("extract", "extract")
    assert fig.outputs == {"moderately_sensitive": {"fig": "output/fig.png"}}
    assert (fig.run.image_name, fig.run.image_version, fig.run.args) == ("python", "v2", ("python", "fig.py"))
    assert not fig.requires_db
    assert found.actions["extract"].requires_db


@pytest.mark.parametrize("version", [0, -3, 1, 2, 4, 4.5, 5, "4", "5", 3.5, True, " 2 "])
def test_versions_that_pass(version: object) -> None:
    assert parse(project(version)).version == float(version)  # type: ignore[arg-type]  the table is of anything


def test_version_nan_passes_and_has_no_rule_of_a_later_version() -> None:
    data = project(float("nan"), a=FIGURE, b=action(run="python:latest b.py"))
    data["expectations"] = "ignored"
    assert math.isnan(parse(data).version)


@pytest.mark.parametrize("version", ["four", None, [], {}, "1,5", "v4"])
def test_version_that_is_no_number(version: object) -> None:
    assert fault(project(version)) == "`version` must be a number between 1 and 5"


@pytest.mark.parametrize("version", [6, "6", 5.1, float("inf"), 10**400])
def test_version_that_is_too_new(version: object) -> None:
    assert "newer than the newest that is supported" in fault(project(version))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "The project file is empty"),
        ([], "The project file must be a mapping of names to values, not a list"),
        ("text", "not 'text'"),
        ({"actions": {}}, "must have a `version`"),
        ({"version": 4}, "Missing parameters (actions) in project"),
        ({"version": 4, "actions": {}, "x": 1, 2: 3}, "Unexpected parameters (x, 2) in project"),
        ({"version": 4, "actions": []}, "`actions` must be a mapping"),
        ({"version": 4, "actions": None}, "`actions` must be a mapping of names to values, not empty"),
        (project(a=None), "In action a: An action must be a mapping"),
        (project(a={"run": "python:v2 x"}), "Missing parameters (outputs) in action a"),
        (project(a=action(foo=1, bar=2)), "Unexpected parameters (foo, bar) in action a"),
        (project(a=action(dummy_data_file=3)), "`dummy_data_file` must be a file name, not 3"),
        (project(**{"": FIGURE}), "Action name '' must be text"),
        (project(**{"../x": FIGURE}), "without slashes"),
        (project(**{"a\nb": FIGURE}), "control characters"),
        ({"version": 4, "actions": {7: FIGURE}}, "put 7 into quotes"),
    ],
)
def test_shape(data: object, words: str) -> None:
    assert words in fault(data)


def test_an_empty_project_is_valid() -> None:
    assert parse({"version": 4, "actions": {}}).actions == {}


EXPECTATIONS = {"population_size": 1000}


@pytest.mark.parametrize(
    ("version", "section", "words"),
    [
        (3, None, "must be a mapping"),
        (3, {}, "Missing parameters (population_size) in `expectations`"),
        (3, {"population_size": "many"}, "population size must be a number"),
        (3, {"population_size": float("inf")}, "population size must be a number"),
        (3, {"population_size": 1, "seed": 2}, "Unexpected parameters (seed) in `expectations`"),
        (4, EXPECTATIONS, "not supported in version 4 or later"),
        (5, EXPECTATIONS, "not supported in version 4 or later"),
    ],
)
def test_expectations_that_fail(version: object, section: object, words: str) -> None:
    assert words in fault(project(version) | {"expectations": section})


def test_exactly_version_three_needs_expectations() -> None:
    assert "must include `expectations`" in fault(project(3))
    parse(project(3) | {"expectations": {"population_size": "1000"}})
    for version in (1, 2, 2.5, 3.5, 0, "nan"):
        parse(project(version) | {"expectations": ["ignored"]})


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (None, "In action a: `run` must be a command line, not empty"),
        (["python:v2"], "In action a: `run` must be a command line, not a list"),
        ("", "In action a: `run` must not be empty"),
        ("  ", "In action a: `run` must not be empty"),
        ("python:v2 'x", "In action a: `run` cannot be split into words (no closing quotation): python:v2 'x"),
        (":v2 x", "`run` must begin with the name of an action command"),
    ],
)
def test_run_that_is_no_command(run: object, words: str) -> None:
    assert words in fault(project(a=action(run=run)))


@pytest.mark.parametrize("word", ["python", "python:2", "python:V2", "python:v", "python:v2x", "python:v2-rc"])
def test_run_without_version(word: str) -> None:
    expected = "Action command python must have a version specified in the form :vN (e.g. python:v2)"
    assert fault(project(a=action(run=f"{word} x"))) == expected


@pytest.mark.parametrize("version", ["v2", "v1.4", "v2-pre", "dev", "latest", "v.."])
def test_image_versions_that_pass(version: str) -> None:
    assert parse(project(a=action(run=f"python:{version} x"))).actions["a"].run.image_version == version


def test_rules_of_version_five() -> None:
    parse(project(4, run_all=FIGURE))
    assert "`run_all` is reserved" in fault(project(5, run_all=FIGURE))
    assert "may not use the `:latest` version" in fault(project(5, a=action(run="python:latest x")))


def test_cohortextractor_ends_with_version_four() -> None:
    run = "cohortextractor:latest generate_measures"
    parse(project(2, a=action(run=run)))
    assert "cohortextractor actions are not supported" in fault(project(4, a=action(run=run)))


def test_equal_commands_are_an_error_in_every_version() -> None:
    other = action(outputs={"highly_sensitive": {"x": "x.csv"}})
    for version in (1, 4):
        assert "Actions fig and b have the same `run`" in fault(project(version, fig=FIGURE, b=other))


def test_commands_may_differ_in_spaces_only() -> None:
    other = action(run="python:v2  python fig.py", outputs={"highly_sensitive": {"x": "x.csv"}})
    parse(project(4, fig=FIGURE, b=other))


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        ("b", "`needs` must be a list of action names, not 'b'"),
        (None, "`needs` must be a list of action names, not empty"),
        ([1], "1 is not text"),
        ([["b"]], "a list is not text"),
        (["b c"], "'b c' has a space in it"),
        (["b"], "`needs` names b, which is not an action"),
    ],
)
def test_needs_that_fail(needs: object, words: str) -> None:
    assert words in fault(project(a=action(needs=needs)))


def chained(needs: dict[str, list[str]]) -> dict[str, Any]:
    return project(
        4,
        **{
            name: {"run": f"python:v2 {name}", "outputs": {"highly_sensitive": {"x": f"{name}.csv"}}, "needs": n}
            for name, n in needs.items()
        },
    )


@pytest.mark.parametrize(
    ("needs", "path"),
    [
        ({"a": ["a"]}, "a -> a"),
        ({"a": ["b"], "b": ["a"]}, "a -> b -> a"),
        ({"x": ["a"], "a": ["b"], "b": ["c"], "c": ["a"]}, "a -> b -> c -> a"),
        ({"x": [], "y": ["x", "z"], "z": ["x", "y"]}, "y -> z -> y"),
    ],
)
def test_a_cycle_is_named(needs: dict[str, list[str]], path: str) -> None:
    assert fault(chained(needs)) == f"Actions need each other in a circle: {path}"


def test_a_diamond_is_no_cycle() -> None:
    parse(chained({"d": ["b", "c"], "b": ["a"], "c": ["a"], "a": []}))


def test_five_thousand_actions_in_a_row() -> None:
    chain = {f"a{i}": [f"a{i + 1}"] for i in range(5000)} | {"a5000": []}
    assert len(parse(chained(chain)).actions) == 5001
    chain["a5000"] = ["a0"]
    assert "a0 -> a1 -> " in fault(chained(chain))


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), max_size=3), min_size=1))
def test_cycles_are_found_exactly(needs: dict[str, list[str]]) -> None:
    """Against the plainest possible definition: an action that can reach itself."""
    needs = {name: [n for n in wanted if n in needs] for name, wanted in needs.items()}

    def reached(name: str) -> set[str]:
        found: set[str] = set()
        todo = list(needs[name])
        while todo:
            if (one := todo.pop()) not in found:
                found.add(one)
                todo += needs[one]
        return found

    if any(name in reached(name) for name in needs):
        path = fault(chained(needs)).rpartition(": ")[2].split(" -> ")
        assert path[0] == path[-1]
        assert all(b in needs[a] for a, b in pairwise(path))
    else:
        parse(chained(needs))


def test_config_becomes_an_argument() -> None:
    run = parse(project(a=action(config={"who": "it's", "n": [1, 2]}))).actions["a"].run
    assert run.run_command == ('python:v2 python fig.py --config \'{"who": "it\\u0027s", "n": [1, 2]}\'')
    assert run.args == ("python", "fig.py", "--config", '{"who": "it\\u0027s", "n": [1, 2]}')
    assert run.raw == FIGURE["run"]


def test_config_that_json_cannot_say() -> None:
    assert "`config` must be a mapping" in fault(project(a=action(config=[1])))
    assert "`config` must be a mapping" in fault(project(a=action(config=None)))
    assert "`config` cannot be written as JSON" in fault(project(a=action(config={"x": object()})))
    deep: Any = {}
    for _ in range(100_000):
        deep = {"x": deep}
    assert "nested too deeply" in fault(project(a=action(config=deep)))
    while deep:  # taken apart by hand: freeing it would recurse as well
        deep = deep["x"]


@pytest.mark.parametrize(
    ("run", "requires_db"),
    [
        ("ehrql:v1 generate-dataset x --output a.csv", True),
        ("ehrql:v1 generate-measures x", True),
        ("ehrql:v1 test x", False),
        ("ehrql:v1", False),
        ("sqlrunner:v1 --output a.csv", True),
        ("sqlrunner:v1", True),
        ("databuilder:v1 generate-dataset x --output a.csv", True),
        ("databuilder:v1 generate-measures", False),
        ("cohortextractor:latest generate_cohort", True),
        ("cohortextractor:latest generate_codelist_report", True),
        ("cohortextractor:latest generate_measures", False),
        ("python:v2 generate-dataset", False),
    ],
)
def test_which_commands_need_the_database(run: str, requires_db: bool) -> None:
    made = action(run=run, outputs={"highly_sensitive": {"x": "a.csv"}})
    assert parse(project(2, a=made)).actions["a"].requires_db is requires_db


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["version", "actions", "run", "needs", "outputs", "a"]) | st.text(), inner
            )
        ),
    )
)
def test_anything_is_a_project_or_is_refused_in_words(data: object) -> None:
    # Any other exception than the domain's own fails the test.
    with contextlib.suppress(InvalidProject):
        assert parse(data).actions is not None


def test_an_action_that_no_file_could_be_named_after_is_refused() -> None:
    body = {"run": "python:v2 a.py", "outputs": {"highly_sensitive": {"x": "a.csv"}}}
    parse({"version": 4, "actions": {"\u00e9" * 100: body}})
    with pytest.raises(InvalidProject, match="is too long: at most 200 bytes are possible"):
        parse({"version": 4, "actions": {"\u00e9" * 101: body}})
