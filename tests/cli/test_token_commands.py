"""`rap token` over real HTTP: what it asks for, says, keeps to itself and exits with."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from cli.main import rap
from common import tokens
from tests.cli.fake_controller import TOKEN, FakeController, invoke, serving

pytestmark = pytest.mark.usefixtures("alone")

AT = "2026-01-01T00:00:00.000000Z"
CREATE = "POST /api/tokens"
REVOKE = "POST /api/tokens/laptop/revoke"


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    async with serving() as controller:
        yield controller


def made(**changes: Any) -> dict[str, Any]:
    return {
        "name": "laptop",
        "kind": "client",
        "state": "valid",
        "grants": {"b": ["read", "run"]},
        "elsewhere": False,
        "created_at": AT,
        "created_by": "operator of b",
        "expires_at": None,
        "revoked_at": None,
        "revoked_by": None,
        **changes,
    }


REVOKED = made(state="revoked", revoked_at=AT, revoked_by="operator of b")


@pytest.mark.parametrize(
    ("arguments", "grants", "lifetime"),
    [
        (["--backend", "b"], {"b": ["read", "run"]}, None),
        (["-b", "b", "-b", "c", "--expires", "90d"], {"b": ["read", "run"], "c": ["read", "run"]}, 90 * 86400),
        (["-b", "b", "--verb", "manage", "--verb", "read", "--verb", "read"], {"b": ["manage", "read"]}, None),
        (["-b", "b", "--agent", "--expires", "30m"], {"b": ["agent"]}, 1800),
    ],
)
async def test_a_token_is_printed_alone_and_only_its_digest_is_sent(
    controller: FakeController, arguments: list[str], grants: Any, lifetime: int | None
) -> None:
    controller.script[CREATE] = (200, {"changed": True, "token": made()})
    result = await invoke(controller, "token", "create", "laptop", *arguments)
    assert result.exit_code == 0
    secret = result.stdout.removesuffix("\n")
    assert tokens.FORM.fullmatch(secret)
    assert "This is token laptop: b (read, run), until it is revoked. It is shown only now." in result.stderr
    assert secret not in result.stderr
    body = {"name": "laptop", "digest": tokens.digest(secret).hex(), "grants": grants, "lifetime_seconds": lifetime}
    assert controller.requests == [(CREATE, body)]


async def test_as_json(controller: FakeController) -> None:
    controller.script[CREATE] = (200, {"changed": True, "token": made(expires_at=AT)})
    result = await invoke(controller, "token", "create", "laptop", "-b", "b", "--json")
    document = json.loads(result.stdout)
    assert tokens.digest(document.pop("secret")).hex() == controller.requests[0][1]["digest"]
    assert document == made(expires_at=AT)
    assert result.stderr == ""


async def test_a_lost_answer_is_asked_for_again_with_the_same_token(controller: FakeController) -> None:
    controller.script[CREATE] = [None, (200, {"changed": False, "token": made()})]
    result = await invoke(controller, "token", "create", "laptop", "-b", "b", RAP_RETRY_FOR="10")
    assert result.exit_code == 0
    first, second = controller.requests
    assert first == second
    assert tokens.digest(result.stdout.strip()).hex() == first[1]["digest"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "laptop"], "Name it with --backend"),
        (["create", "laptop", "-b", "b", "--agent", "--verb", "read"], "--verb does not go with --agent"),
        (["create", "laptop", "-b", "b", "--verb", "agent"], "'agent' is not one of"),
        *(
            (["create", "laptop", "-b", "b", "--expires", span], "90d")
            for span in ("0d", "90", "-1d", "1.5d", "101y", "9" * 9 + "w")
        ),
        (["revoke", "laptop"], "give -y"),
        (["create", "-b", "b"], "Missing argument"),
    ],
)
async def test_what_makes_no_sense_is_not_asked(controller: FakeController, arguments: list[str], words: str) -> None:
    result = await invoke(controller, "token", *arguments)
    assert (result.exit_code, result.stdout, controller.requests) == (2, "", [])
    assert words in result.stderr


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (409, "The name 'laptop' is taken"),
        (403, "This token may use backend 'b', but not manage it"),
        (404, "There is no backend 'b' for this token."),
        (400, "Invalid request body received at $.name"),
    ],
)
async def test_refusals_are_one_line_and_print_no_token(controller: FakeController, status: int, message: str) -> None:
    controller.script[CREATE] = (status, {"error": "x", "message": message})
    result = await invoke(controller, "token", "create", "laptop", "-b", "b")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"rap: {message}\n"


async def test_the_list_tells_who_gets_where_until_when(controller: FakeController) -> None:
    listed = [made(expires_at=AT), {**REVOKED, "name": "node\x1b[2J", "kind": "agent", "elsewhere": True}]
    controller.script["GET /api/tokens"] = (200, {"tokens": listed})
    result = await invoke(controller, "token", "list")
    assert result.exit_code == 0
    head, first, *rest = result.stdout.splitlines()
    assert head.split() == ["Token", "Kind", "State", "Opens", "Expires", "Created", "By"]
    assert first.split()[:6] == ["laptop", "client", "valid", "b", "(read,", "run)"]
    assert "\x1b" not in result.stdout
    shown = " ".join(" ".join(rest).split())
    assert all(word in shown for word in ("agent", "revoked", "and others", "never"))
    document = await invoke(controller, "token", "list", "--json")
    assert json.loads(document.stdout) == {"tokens": listed}


async def test_revoke_says_whether_it_was_so_already(controller: FakeController) -> None:
    controller.script[REVOKE] = [(200, {"changed": changed, "token": REVOKED}) for changed in (True, False)]
    first = await invoke(controller, "token", "revoke", "laptop", "-y")
    assert first.stdout == f"Token laptop was revoked ({AT}, by operator of b)\n"
    again = await invoke(controller, "token", "revoke", "laptop", "-y")
    assert again.stdout == f"Token laptop was revoked already: nothing changed ({AT}, by operator of b)\n"
    document = await invoke(controller, "token", "revoke", "laptop", "-y", "--json")
    assert json.loads(document.stdout) == {"changed": False, "token": REVOKED}
    assert (first.exit_code, again.exit_code, controller.paths()) == (0, 0, [REVOKE] * 3)


async def test_a_name_cannot_lead_elsewhere(controller: FakeController) -> None:
    result = await invoke(controller, "token", "revoke", "../backends", "-y")
    assert (result.exit_code, controller.paths()) == (2, ["POST /api/tokens/..%2Fbackends/revoke"])


@pytest.mark.parametrize(("said", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
async def test_at_a_terminal_it_asks(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch, said: str, code: int
) -> None:
    monkeypatch.setattr("cli.confirmation.has_person", lambda: True)
    controller.script[REVOKE] = (200, {"changed": True, "token": REVOKED})
    environ = {"RAP_URL": controller.url, "RAP_TOKEN": TOKEN, "RAP_RETRY_FOR": "0"}

    def ask() -> Result:
        return CliRunner().invoke(rap, ["token", "revoke", "laptop"], input=said, env=environ)

    result = await asyncio.to_thread(ask)
    assert result.exit_code == code
    assert "Revoke token laptop? Whoever uses it is shut out at once." in result.stderr
    assert controller.paths() == ([REVOKE] if code == 0 else [])


@pytest.mark.parametrize("as_json", [[], ["--json"]])
async def test_a_token_that_cannot_be_printed_is_to_be_revoked(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch, as_json: list[str]
) -> None:
    """It is valid, and nobody has it."""
    controller.script[CREATE] = (200, {"changed": True, "token": made()})
    echo = click.echo

    def full(message: Any = None, *rest: Any, **options: Any) -> None:
        if not options.get("err"):
            raise OSError(28, "No space left on device")
        echo(message, *rest, **options)

    monkeypatch.setattr("click.echo", full)
    result = await invoke(controller, "token", "create", "laptop", "-b", "b", *as_json)
    assert result.exit_code == 2
    assert "rap token revoke laptop" in result.stderr
    assert not tokens.FORM.search(result.stderr)
