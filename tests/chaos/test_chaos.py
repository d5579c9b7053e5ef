"""The short form of `make chaos`, and proof that it would notice: with a safeguard off it fails.

The seed is fixed; RAP_CHAOS_SEED adds a run of that one.
"""

import os
import shutil

import pytest

from tests.chaos.__main__ import Options, main, run, tell
from tests.chaos.launcher import CAS, FENCING

SEEDS = [1, *(int(seed) for seed in os.environ.get("RAP_CHAOS_SEED", "").split())]


@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_is_lost_whatever_dies(seed: int) -> None:
    outcome = await run(Options(seed=seed))
    assert outcome.verdict.clean, tell(outcome)
    assert outcome.story["kills"], "nobody was alive to be killed"
    assert outcome.verdict.accepted >= 200


async def test_without_fencing_the_run_fails() -> None:
    """A stale report ends its job's newer attempt, which goes on and is never over."""
    outcome = await run(Options(seed=0, mutation=FENCING, patience=8))
    assert outcome.verdict.illegal_transitions or outcome.verdict.left_non_terminal, tell(outcome)
    shutil.rmtree(outcome.folder)


async def test_without_the_compare_and_set_of_a_claim_the_run_fails() -> None:
    """Two agents take one task: both run it, or take it from each other for ever."""
    outcome = await run(Options(seed=0, mutation=CAS, patience=5))
    assert outcome.verdict.run_twice or outcome.verdict.left_non_terminal, tell(outcome)
    shutil.rmtree(outcome.folder)


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--mutate", "everything"])
    assert ended.value.code == 2
    assert "invalid choice" in capsys.readouterr().err
