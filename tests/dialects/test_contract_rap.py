"""Schemathesis makes up requests from schemas/rap/openapi.yaml, right and wrong ones, and judges every answer.

The controller runs in a thread of its own on a real port, as schemathesis speaks blocking HTTP.
"""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from aiohttp import web
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from controller.core.model import RapRequest
from controller.dialects.rap.wire import CONTRACT
from controller.engine.results import Created
from tests.dialects import worlds
from tests.dialects.conftest import PORTAL_TOKEN, make_root
from tests.fakes.clock import ManualClock
from tests.fakes.engine import ScriptedEngine

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]

schema = schemathesis.openapi.from_dict(CONTRACT.document)


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The URL of a controller whose engine agrees to everything that reaches it."""
    engine = ScriptedEngine()
    worlds.running(engine)
    engine.script["create_rap"] = _agree
    engine.script["cancel"] = lambda *asked: len(asked[-1])
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(make_root(engine, ManualClock()))
    port = loop.run_until_complete(_start(runner))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{port}/controller/v1"
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def _agree(_: object, request: RapRequest) -> Any:
    return Created(rap_id=request.rap_id, count=len(request.requested_actions))


async def _start(runner: web.AppRunner) -> int:
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return int(runner.addresses[0][1])


few = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


@schema.parametrize()
@few
def test_requests_that_the_contract_allows_are_answered_as_it_says(case: Case[Any], served: str) -> None:
    case.call_and_validate(
        base_url=served,
        headers={"Authorization": PORTAL_TOKEN},
        checks=[*CHECKS, positive_data_acceptance, negative_data_rejection, unsupported_method],
    )
