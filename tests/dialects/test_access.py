"""Which token may do what: from the settings to the principal that the engine sees."""

import pytest

from controller.app import make_app
from controller.core.model import Principal, Verb
from controller.settings import from_environ
from controller.web.keys import TOKENS
from tests.fakes.clock import ManualClock
from tests.fakes.engine import ScriptedEngine

CLIENT = frozenset({Verb.READ, Verb.RUN})
OPERATOR = CLIENT | {Verb.MANAGE}


def principal(token: str, **tokens: str) -> Principal | None:
    """Who holds `token` at a controller with these settings."""
    settings = from_environ({"RAP_DATABASE_URL": "postgresql://db/rap", "BACKENDS": "b,a", **tokens})
    app = make_app(settings, ManualClock(), ScriptedEngine())  # type: ignore[arg-type]  # a stand-in for the facade
    return app[TOKENS].principal(token)


def test_a_clients_token_does_not_manage() -> None:
    found = principal("c", A_CLIENT_TOKENS="c", A_OPERATOR_TOKENS="o")
    assert found == Principal(name="client of a", grants={"a": CLIENT})


def test_an_operators_token_reads_and_runs_too() -> None:
    found = principal("o", A_CLIENT_TOKENS="c", A_OPERATOR_TOKENS="o")
    assert found == Principal(name="operator of a", grants={"a": OPERATOR})


def test_a_token_in_both_lists_has_the_rights_of_both_once() -> None:
    found = principal("t", A_CLIENT_TOKENS="t,c", A_OPERATOR_TOKENS="t")
    assert found == Principal(name="operator of a", grants={"a": OPERATOR})


def test_an_operator_of_several_backends_sees_them_in_their_order() -> None:
    found = principal("o", A_OPERATOR_TOKENS="o", B_OPERATOR_TOKENS="o,p")
    assert found == Principal(name="operator of b, a", grants={"b": OPERATOR, "a": OPERATOR})
    assert found.backends == ("b", "a")


def test_a_token_manages_one_backend_and_merely_uses_another() -> None:
    found = principal("t", A_OPERATOR_TOKENS="t", B_CLIENT_TOKENS="t")
    assert found == Principal(name="operator of a, client of b", grants={"b": CLIENT, "a": OPERATOR})
    assert found.backends_for(Verb.MANAGE) == ("a",)
    assert found.backends_for(Verb.READ) == ("b", "a")
    assert [found.may(Verb.MANAGE, backend) for backend in ("a", "b", "c")] == [True, False, False]


@pytest.mark.parametrize("token", ["", "x", "o,p"])
def test_what_is_in_no_list_opens_nothing(token: str) -> None:
    assert principal(token, A_OPERATOR_TOKENS="o,p") is None
