"""Codes belong to states, totally, and the database agrees."""

import re

from controller.core.codes import MESSAGE, RESETS, STAGES, STATE_OF, JobState, StatusCode
from controller.store.schema import migrations


def test_every_code_has_one_state() -> None:
    assert set(STATE_OF) == set(StatusCode)


def test_only_the_agents_stages_lack_a_message() -> None:
    assert set(StatusCode) - set(MESSAGE) == STAGES


def test_stages_run_and_resets_wait() -> None:
    assert {code.state for code in STAGES} == {JobState.RUNNING}
    assert {code.state for code in RESETS} == {JobState.PENDING}


def test_the_databases_constraint_is_the_same_map() -> None:
    (sql,) = [step.sql for step in migrations() if "job_code_belongs_to_state" in step.sql]
    constraint = sql.partition("job_code_belongs_to_state")[2].partition("END)")[0]
    found = dict(re.findall(r"WHEN '(\w+)' THEN state = '(\w+)'", constraint))
    assert found == {code.value: state.value for code, state in STATE_OF.items()}
