"""What single jobs may use: who may say it, whose word holds, and what is told to whoever asks wrongly."""

from typing import Any

import pytest

from controller.core.definition import Owner, Terms, run_definition
from controller.core.errors import InvalidProject, Rejected
from controller.core.model import ReusableAction, TaskId
from controller.core.plan import Plan, ResolvedAction, check_resources, plan, with_reusable_actions
from controller.core.project import parse
from controller.core.resources import NOTHING, JobLimits, Resources
from controller.core.weights import InvalidWeights, Weights
from controller.core.weights import parse as parse_weights
from tests import factories

ORDINARY = JobLimits(cpu_count=2, memory_limit="4G", time_limit=3600)
MOST = JobLimits(cpu_count=8, memory_limit="32G", time_limit=86_400)
RULES = """
[workspace.study]
'big' = {weight = 3, memory = "16G", cpus = 4}
[default]
'python:v2 .*--slow' = {time = "1d"}
'.*' = 2
"""


def project(resources: Any = None, run: str = "python:v2 python big.py", **more: Any) -> dict[str, Any]:
    action: dict[str, Any] = {"run": run, "outputs": {"highly_sensitive": {"rows": "output/rows.csv"}}}
    if resources is not None:
        action["resources"] = resources
    return {"version": "4", "actions": {"big": action | more}}


def planned(resources: Any = None, rules: str = "", **more: Any) -> Plan:
    weights = parse_weights(rules)
    made = plan(
        factories.rap_request(requested_actions=("big",)),
        parse(project(resources, **more), may_ask=True),
        {},
        now=factories.NOW,
        new_traceparent=lambda: factories.TRACEPARENT,
        weight=weights.weigh,
        grant=weights.grant,
    )
    assert isinstance(made, Plan)
    return made


def said(plan: Plan) -> Resources:
    return plan.jobs[0].spec.resources


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ({}, NOTHING),
        ({"cpus": 4}, Resources(cpus=4)),
        ({"cpus": 0.5, "memory": "8G"}, Resources(cpus=0.5, memory="8G")),
        ({"memory": "1.5GiB", "time": "1h30m"}, Resources(memory="1536M", seconds=5400)),
        ({"cpus": 1, "memory": "512m", "time": "1s"}, Resources(cpus=1, memory="512M", seconds=1)),
    ],
)
def test_what_an_author_may_write(written: Any, asked: Resources) -> None:
    assert parse(project(written), may_ask=True).actions["big"].resources == asked
    assert said(planned(written)) == asked


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (None, None),
        ([], "`resources` must be a mapping of names to values, not a list"),
        ("8G", "`resources` must be a mapping"),
        ({"cpu": 4}, r"Unexpected parameters \(cpu\) in `resources` of action big"),
        ({"cpus": "4"}, "`resources` `cpus` must be a number of at least 0.01, not '4'"),
        ({"cpus": 0}, "`cpus` must be"),
        ({"cpus": True}, "`cpus` must be"),
        ({"cpus": float("nan")}, "`cpus` must be"),
        ({"cpus": float("inf")}, "`cpus` must be"),
        ({"memory": 8}, "`resources` `memory` must be a size such as 8G or 512M, at least 16M, not 8"),
        ({"memory": "8"}, "`memory` must be"),
        ({"memory": "1M"}, "`memory` must be"),
        ({"memory": "lots"}, "`memory` must be"),
        ({"memory": None}, "`memory` must be .* not empty"),
        ({"time": 3600}, "`resources` `time` must be a time such as 90s, 30m, 2h or 1h30m, at least 1s, not 3600"),
        ({"time": "0.5s"}, "`time` must be"),
        ({"time": "soon"}, "`time` must be"),
    ],
)
def test_what_is_wrong_is_told_by_action_and_field(written: Any, words: str | None) -> None:
    body = project(written)
    if words is None:
        body["actions"]["big"]["resources"] = None
        words = "`resources` must be a mapping of names to values, not empty"
    with pytest.raises(InvalidProject, match=words) as caught:
        parse(body, may_ask=True)
    assert str(caught.value).startswith("Invalid project: \n")
    assert "action big" in str(caught.value)


def test_unless_authors_may_ask_the_key_is_refused_as_upstream_does() -> None:
    with pytest.raises(InvalidProject) as caught:
        parse(project({"cpus": 1}))
    assert str(caught.value) == "Invalid project: \nUnexpected parameters (resources) in action big"


@pytest.mark.parametrize(
    ("workspace", "action", "command", "weight", "granted"),
    [
        ("study", "big", "python:v2 x.py", 3, Resources(cpus=4, memory="16G")),
        ("other", "big", "python:v2 x.py --slow", 1, Resources(seconds=86_400)),
        ("other", "big", "python:v2 x.py", 2, NOTHING),
    ],
)
def test_an_operators_rule_says_weight_and_resources(
    workspace: str, action: str, command: str, weight: float, granted: Resources
) -> None:
    weights = parse_weights(RULES)
    assert weights.weigh(workspace, action, command) == weight
    assert weights.grant(workspace, action, command) == granted
    assert Weights().grant(workspace, action, command) == NOTHING


def test_mistakes_in_a_rule_are_told_with_its_line() -> None:
    text = "[default]\n'a' = {memory = 8}\n'b' = {heavy = 1}\n'c' = {weight = -1}\n'd' = {time = 5}\n"
    with pytest.raises(InvalidWeights) as caught:
        parse_weights(text)
    first, second, third, fourth = caught.value.faults
    assert first.startswith("line 2: rule 'a' `memory` must be")
    assert second == "Unexpected parameters (heavy) in line 3: rule 'b'"
    assert third.startswith("line 4: rule 'c' needs a weight")
    assert fourth.startswith("line 5: rule 'd' `time` must be")


def test_the_authors_word_goes_before_the_operators_and_that_before_the_backends() -> None:
    made = said(planned({"memory": "8G"}, RULES))
    assert made == Resources(cpus=4, memory="8G")
    assert ORDINARY.adapted(made) == JobLimits(cpu_count=4, memory_limit="8G", time_limit=3600)
    assert ORDINARY.adapted(NOTHING) == ORDINARY


def test_a_reusable_actions_rule_is_that_of_what_really_runs() -> None:
    made = planned({"cpus": 1}, RULES.replace("study", "other"), run="report:v1 --slow")
    assert said(made) == Resources(cpus=1)
    command = parse(project(run="python:v2 main.py")).actions["big"].run
    (use,) = made.reusable
    source = ReusableAction(repo_url="https://github.com/opensafely-actions/report", commit="d" * 40)
    made = with_reusable_actions(made, {use.image: ResolvedAction(source=source, command=command)})
    assert made.jobs[0].spec.run_command == "python:v2 main.py --slow"
    assert said(made) == Resources(cpus=1, seconds=86_400)


@pytest.mark.parametrize(
    ("asked", "rules", "most", "field"),
    [
        ({"cpus": 2, "memory": "4G", "time": "1h"}, "", ORDINARY, None),
        ({"cpus": 2.5}, "", ORDINARY, "cpus"),
        ({"memory": "4097M"}, "", ORDINARY, "memory"),
        ({"time": "61m"}, "", ORDINARY, "time"),
        ({"cpus": 8, "memory": "32G", "time": "1d"}, "", MOST, None),
        ({"memory": "33G"}, "", MOST, "memory"),
        # What an operator's rule gives is never refused to whoever asks for it.
        ({"memory": "16G", "cpus": 4}, RULES, ORDINARY, None),
        ({"memory": "17G"}, RULES, ORDINARY, "memory"),
        ({"time": "90d"}, "", JobLimits(cpu_count=2, memory_limit="4G"), None),
    ],
)
def test_how_much_an_author_may_ask_for(asked: Any, rules: str, most: JobLimits, field: str | None) -> None:
    made = planned(asked, rules)
    if field is None:
        check_resources(made, ordinary=ORDINARY, most=most)
        return
    with pytest.raises(Rejected, match=rf"^Action big asks for .* \(`resources.{field}`\)") as caught:
        check_resources(made, ordinary=ORDINARY, most=most)
    assert caught.value.fields == {"action": "big", "field": f"resources.{field}"}


def test_a_refusal_says_how_much_is_allowed() -> None:
    with pytest.raises(Rejected) as caught:
        check_resources(planned({"time": "2d"}), ordinary=ORDINARY, most=MOST)
    assert str(caught.value) == "Action big asks for 2d (`resources.time`), and the backend allows 1d at most"


def test_the_definition_has_the_jobs_own_limits_and_no_new_key() -> None:
    terms = Terms(
        docker_registry="registry",
        ordinary=ORDINARY,
        level4_max_csv_rows=1,
        level4_max_filesize=1,
        level4_file_types=(),
        stata_license=None,
        ehrql_max_join_count={},
    )
    owner = Owner(user="u", project="p", orgs=())
    plain, own = (
        run_definition(factories.job(resources=each), TaskId("a-001"), owner, [], terms)
        for each in (NOTHING, Resources(cpus=1, memory="1G", seconds=60))
    )
    assert (plain["cpu_count"], plain["memory_limit"]) == (2, "4G")
    assert (own["cpu_count"], own["memory_limit"]) == (1, "1G")
    assert plain.keys() == own.keys()
    assert not [key for key in own if "time" in key]
