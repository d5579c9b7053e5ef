"""JSON to classes, strictly."""

import pytest

from common.convert import Malformed, dumps, loads
from common.protocol import ClaimRequest, Report, ReportAnswer, ReportsRequest, Verdict


def test_enumerations_are_members_and_nothing_else() -> None:
    answer = loads(b'{"task_id": "t", "verdict": "stale"}', ReportAnswer)
    assert answer.verdict is Verdict.STALE
    with pytest.raises(Malformed, match="verdict"):
        loads(b'{"task_id": "t", "verdict": "bogus"}', ReportAnswer)


def test_every_fault_is_named_with_its_place() -> None:
    with pytest.raises(Malformed) as caught:
        loads(b'{"agent": 1, "slots": "2", "holding": [{"task_id": "x"}]}', ClaimRequest)
    assert len(caught.value.faults) == 3
    assert any("holding[0].attempt" in fault for fault in caught.value.faults)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"null", b'"text"'])
def test_what_is_no_such_object_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        loads(body, ClaimRequest)


@pytest.mark.parametrize("value", ["true", "1.5", '"1"', "null"])
def test_numbers_are_never_cast(value: str) -> None:
    with pytest.raises(Malformed):
        loads(b'{"agent": "a", "slots": ' + value.encode() + b"}", ClaimRequest)


def test_unknown_keys_are_ignored_and_values_come_back() -> None:
    request = ReportsRequest(agent="a", reports=(Report(task_id="t", attempt=1, stage="executing"),))
    assert loads(dumps(request), ReportsRequest) == request
    assert loads(dumps(request)[:-1] + b', "new": 1}', ReportsRequest) == request
