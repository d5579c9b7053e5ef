"""Which executor is taken, of those that a machine has."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.executors.choice import ORDER, Choice, Prospect, Standing, choose, explain

READY, ON_REQUEST, UNUSABLE = Standing.READY, Standing.ON_REQUEST, Standing.UNUSABLE
STANDINGS = st.tuples(*(st.sampled_from(Standing) for _ in ORDER))


def prospects(*standings: Standing) -> list[Prospect]:
    return [
        Prospect(name=name, standing=each, finding=f"f-{name}") for name, each in zip(ORDER, standings, strict=True)
    ]


@pytest.mark.parametrize(
    ("standings", "choice"),
    [
        ((READY, READY, READY), Choice(name="docker", reason="f-docker")),
        ((UNUSABLE, READY, READY), Choice(name="slurm", reason="docker: f-docker")),
        ((ON_REQUEST, UNUSABLE, READY), Choice(name="sandbox", reason="docker: f-docker; slurm: f-slurm")),
        (
            (ON_REQUEST, ON_REQUEST, UNUSABLE),
            Choice(name="docker", reason="docker: f-docker; slurm: f-slurm; sandbox: f-sandbox"),
        ),
        ((UNUSABLE, UNUSABLE, UNUSABLE), None),
    ],
)
def test_the_choice_and_its_reason(standings: tuple[Standing, ...], choice: Choice | None) -> None:
    assert choose(prospects(*standings)) == choice


@given(STANDINGS, st.randoms())
def test_nothing_ready_is_passed_over_and_nothing_unusable_taken(
    standings: tuple[Standing, ...], random: Random
) -> None:
    found = prospects(*standings)
    random.shuffle(found)
    choice = choose(found)
    by_name = {each.name: each.standing for each in found}
    if choice is None:
        assert set(standings) == {UNUSABLE}
        return
    taken = by_name[choice.name]
    assert taken is not UNUSABLE
    assert taken is READY or READY not in standings
    better = ORDER[: ORDER.index(choice.name)]
    assert all(by_name[name] is not taken for name in better)
    assert all(f"{name}: f-{name}" in choice.reason for name in better)


def test_all_reasons_are_told_in_order() -> None:
    found = prospects(UNUSABLE, UNUSABLE, UNUSABLE)
    assert explain(found[::-1]) == "docker: f-docker; slurm: f-slurm; sandbox: f-sandbox"
