"""Which databases are checked: defaults, what turns a check off, and what is refused."""

import pytest

from common.environ import ConfigurationError, Environ
from controller.settings import CheckSettings, from_environ

BASE = {"RAP_DATABASE_URL": "postgresql://rap:hunter2-hunter2@db/rap", "BACKENDS": "test,tpp"}
STATUS, DATA = "MAINTENANCE_ENABLED_BACKENDS", "DATA_CHECK_ENABLED_BACKENDS"
MONTH = "DATA_CHECK_HES_EXPECTED_ACTIVITY_MONTH"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, CheckSettings(status=("tpp",))),
        ({"BACKENDS": "test"}, CheckSettings()),
        ({MONTH: "202304"}, CheckSettings(status=("tpp",), data=("tpp",), expected_month="202304")),
        ({MONTH: "202304", "BACKENDS": "test"}, CheckSettings()),
        ({STATUS: ""}, CheckSettings()),
        ({STATUS: " , "}, CheckSettings()),
        ({STATUS: "", DATA: "", MONTH: "202304"}, CheckSettings()),
        ({STATUS: "test, tpp"}, CheckSettings(status=("test", "tpp"))),
        ({STATUS: "", DATA: "test", MONTH: "202304"}, CheckSettings(data=("test",), expected_month="202304")),
    ],
)
def test_what_is_checked(values: dict[str, str], expected: CheckSettings) -> None:
    assert from_environ(BASE | values).checks == expected


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({STATUS: "tpp,nowhere"}, f"{STATUS} has 'nowhere', which is not among BACKENDS"),
        ({DATA: "nowhere", MONTH: "202304"}, f"{DATA} has 'nowhere', which is not among BACKENDS"),
        ({DATA: "tpp"}, f"{MONTH} must be set to the expected month, YYYYMM, since {DATA} is set"),
        ({MONTH: "2023-04"}, f"{MONTH} is '2023-04', which is not a month written YYYYMM, such as 202304"),
        ({MONTH: "202313"}, f"{MONTH} is '202313', which is not a month written YYYYMM, such as 202304"),
    ],
)
def test_what_is_refused(values: dict[str, str], fault: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        from_environ(BASE | values)
    assert caught.value.faults == (fault,)


def test_a_list_that_is_cleared_is_not_one_that_is_missing() -> None:
    environ = Environ({"A": "", "B": "x, y"})
    assert (environ.clearable("A"), environ.clearable("B"), environ.clearable("C")) == ((), ("x", "y"), None)
