"""The weights file: precedence, no traps of case or `%`, and every mistake with its line."""

import pytest

from controller.core.weights import InvalidWeights, Weights, parse

FILE = r"""
# what is heavy here
[workspace.big-study]
'extract_\D+' = 4
'extract_.*' = 2

[default]
'.*--sample 50%.*' = 0.5
'ehrql:v1 generate-dataset.*' = 3
"""


@pytest.mark.parametrize(
    ("workspace", "action", "command", "weight"),
    [
        ("big-study", "extract_all", "python:v2 x.py", 4),
        ("big-study", "extract_2024", "python:v2 x.py", 2),
        ("big-study", "report", "python:v2 x.py", 1),
        ("other", "extract_all", "python:v2 x.py", 1),
        ("other", "any", "ehrql:v1 generate-dataset a.py", 3),
        ("other", "any", "python:v2 x.py --sample 50%", 0.5),
        ("other", "any", "say ehrql:v1 generate-dataset a.py", 1),
    ],
)
def test_workspace_rules_match_actions_then_default_rules_match_commands(
    workspace: str, action: str, command: str, weight: float
) -> None:
    assert parse(FILE).weigh(workspace, action, command) == weight


def test_nothing_weighs_one() -> None:
    assert parse("") == Weights()
    assert Weights().weigh("w", "a", "c") == 1


def test_every_mistake_is_told_with_its_line() -> None:
    text = "\n".join(
        [
            "[default]",
            "'(' = 2",
            "'a' = -1",
            "'b' = true",
            "'c' = 'two'",
            "[typo]",
            "'d' = 1",
            "[workspace.w]",
            "'e' = inf",
        ]
    )
    with pytest.raises(InvalidWeights) as caught:
        parse(text)
    lines = sorted(int(fault.split()[1].rstrip(":")) for fault in caught.value.faults)
    assert lines == [2, 3, 4, 5, 6, 9]


@pytest.mark.parametrize("text", ["[default", "default = 3", "[workspace]\nw = 3", "[default]\n'a' = 1\n'a' = 2"])
def test_what_has_not_the_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidWeights, match=r"line|end of document"):
        parse(text)
