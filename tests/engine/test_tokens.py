"""Tokens that operators make: who may, what they open, for how long, and how a revoke gets about."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
import structlog
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from common import tokens as form
from controller.core.errors import Conflict, Forbidden, NotFound, Rejected, Unavailable
from controller.core.model import Principal, Verb
from controller.core.tokens import NewToken, TokenKind, kind_of
from controller.engine.facade import Engine
from controller.engine.known_tokens import FRESH_SECONDS, MOST_UNKNOWN, KnownTokens
from controller.engine.tokens import TokenState
from controller.store.db import Database
from controller.store.tokens import TokenRow
from tests.engine.conftest import Harness
from tests.factories import NOW, principal

USES = frozenset({Verb.READ, Verb.RUN})
ALL = USES | {Verb.MANAGE}
OPERATOR = principal("test", verbs=ALL)
OF_BOTH = principal("test", "other", verbs=ALL)
MIXED = Principal(name="mixed", grants={"other": USES, "test": ALL})
PORTAL = principal("test")


def new(name: str = "laptop", *, lifetime: timedelta | None = None, **grants: frozenset[Verb]) -> tuple[str, NewToken]:
    """A token and what is asked about it; by default a client's of `test`."""
    secret = form.make()
    asked = NewToken(name=name, digest=form.digest(secret), grants=grants or {"test": USES}, lifetime=lifetime)
    return secret, asked


async def make(harness: Harness, name: str = "laptop", **changes: Any) -> str:
    secret, asked = new(name, **changes)
    assert (await harness.engine.create_token(OF_BOTH, asked)).changed
    return secret


async def who(engine: Engine, secret: str, kind: TokenKind = TokenKind.CLIENT) -> Principal | None:
    return await engine.recognise(form.digest(secret), kind)


@pytest.fixture
def second(harness: Harness) -> Engine:
    """Another controller on the same database, whose wake-ups nobody delivers."""
    return Engine(evolve(harness.context, known_tokens=KnownTokens()))


class TestCreating:
    async def test_a_client_is_recognised_with_its_rights_on_each_backend(self, harness: Harness) -> None:
        secret = await make(harness, other=ALL, test=USES)
        found = await who(harness.engine, secret)
        assert found == Principal(name="token laptop", grants={"test": USES, "other": ALL})
        assert found.backends == ("test", "other"), "in the configured order"
        assert await who(harness.engine, secret, TokenKind.AGENT) is None
        assert await who(harness.engine, secret[:-1]) is None

    async def test_an_agent_is_recognised_at_its_door_only(self, harness: Harness) -> None:
        secret = await make(harness, test=frozenset({Verb.AGENT}))
        found = await who(harness.engine, secret, TokenKind.AGENT)
        assert found == Principal(name="token laptop", grants={"test": frozenset({Verb.AGENT})})
        assert await who(harness.engine, secret) is None

    async def test_what_is_answered_is_what_is_listed(self, harness: Harness) -> None:
        _, asked = new(lifetime=timedelta(days=90))
        done = await harness.engine.create_token(OPERATOR, asked)
        assert (done.changed, done.token.state, done.token.grants) == (True, TokenState.VALID, {"test": USES})
        assert (done.token.created_by, done.token.created_at) == ("portal", NOW)
        assert done.token.expires_at == NOW + timedelta(days=90)
        assert list(await harness.engine.tokens(OPERATOR)) == [done.token]

    async def test_only_a_digest_is_stored(self, harness: Harness, database: Database) -> None:
        secret = await make(harness)
        async with database.connection() as tx:
            rows = await tx.fetch("SELECT token::text FROM token UNION ALL SELECT token_grant::text FROM token_grant")
        assert len(rows) == 2
        assert not any(secret in row[0] for row in rows)

    async def test_the_same_again_is_no_error(self, harness: Harness) -> None:
        """The answer was lost: whoever asks has the token still, and asks again."""
        secret, asked = new(lifetime=timedelta(days=1))
        first = await harness.engine.create_token(OPERATOR, asked)
        harness.clock.advance(60)
        again = await harness.engine.create_token(OPERATOR, asked)
        assert (again.changed, again.token) == (False, first.token)
        assert await who(harness.engine, secret) is not None

    async def test_at_once_twice_is_once(self, harness: Harness) -> None:
        _, asked = new()
        done = await asyncio.gather(*(harness.engine.create_token(OPERATOR, asked) for _ in range(5)))
        assert sorted(each.changed for each in done) == [False] * 4 + [True]

    @pytest.mark.parametrize("revoked", [False, True])
    async def test_a_name_is_used_once_for_ever(self, harness: Harness, revoked: bool) -> None:
        secret = await make(harness)
        if revoked:
            await harness.engine.revoke_token(OF_BOTH, "laptop")
        before = list(await harness.engine.tokens(OF_BOTH))
        other, asked = new(test=ALL)
        with pytest.raises(Conflict, match="'laptop' is taken"):
            await harness.engine.create_token(OPERATOR, asked)
        assert list(await harness.engine.tokens(OF_BOTH)) == before
        assert await who(harness.engine, other) is None
        assert (await who(harness.engine, secret) is None) == revoked

    @pytest.mark.parametrize(
        "change", [{"name": "phone"}, {"grants": {"test": ALL}}, {"lifetime": timedelta(days=2)}, {"lifetime": None}]
    )
    async def test_a_token_is_made_once(self, harness: Harness, change: Mapping[str, Any]) -> None:
        _, asked = new(lifetime=timedelta(days=1))
        first = await harness.engine.create_token(OPERATOR, asked)
        with pytest.raises(Conflict, match="exists already"):
            await harness.engine.create_token(OPERATOR, evolve(asked, **change))
        assert list(await harness.engine.tokens(OPERATOR)) == [first.token]

    async def test_a_token_that_ended_is_not_made_again(self, harness: Harness) -> None:
        secret, asked = new()
        await harness.engine.create_token(OPERATOR, asked)
        await harness.engine.revoke_token(OPERATOR, "laptop")
        with pytest.raises(Conflict, match="was made before, and is revoked"):
            await harness.engine.create_token(OPERATOR, asked)
        assert await who(harness.engine, secret) is None

    @pytest.mark.parametrize(
        ("caller", "backend", "error"),
        [
            (PORTAL, "test", Forbidden),
            (MIXED, "other", Forbidden),
            (OPERATOR, "other", NotFound),
            (OPERATOR, "nowhere", NotFound),
            (OPERATOR, "te\0st", NotFound),
        ],
    )
    async def test_nobody_gives_what_they_do_not_manage(
        self, harness: Harness, caller: Principal, backend: str, error: type[Exception]
    ) -> None:
        secret, asked = new(**{"test": USES, backend: USES})
        with pytest.raises(error):
            await harness.engine.create_token(caller, asked)
        assert list(await harness.engine.tokens(OF_BOTH)) == []
        assert await who(harness.engine, secret) is None

    async def test_a_made_operator_may_let_others_in(self, harness: Harness) -> None:
        secret = await make(harness, test=ALL)
        found = await who(harness.engine, secret)
        assert found is not None
        _, asked = new("phone")
        done = await harness.engine.create_token(found, asked)
        assert done.token.created_by == "token laptop"

    @pytest.mark.parametrize(
        "grants",
        [{}, {"test": frozenset()}, {"test": {Verb.AGENT, Verb.READ}}, {"test": {Verb.AGENT}, "other": {Verb.READ}}],
    )
    async def test_grants_that_make_no_sense(self, harness: Harness, grants: Any) -> None:
        asked = evolve(new()[1], grants=grants)
        with pytest.raises(Rejected):
            await harness.engine.create_token(OF_BOTH, asked)
        assert list(await harness.engine.tokens(OF_BOTH)) == []


class TestExpiry:
    async def test_it_ends_on_the_dot_although_it_is_remembered(self, harness: Harness) -> None:
        secret = await make(harness, lifetime=timedelta(seconds=5))
        harness.clock.advance(4.999999)
        assert await who(harness.engine, secret) is not None
        harness.clock.advance(0.000001)
        assert await who(harness.engine, secret) is None
        (view,) = await harness.engine.tokens(OPERATOR)
        assert view.state is TokenState.EXPIRED

    async def test_it_can_still_be_revoked(self, harness: Harness) -> None:
        await make(harness, lifetime=timedelta(seconds=5))
        harness.clock.advance(5)
        done = await harness.engine.revoke_token(OPERATOR, "laptop")
        assert (done.changed, done.token.state) == (True, TokenState.REVOKED)


class TestListing:
    async def test_others_backends_are_only_hinted_at(self, harness: Harness) -> None:
        await make(harness, "a", test=USES)
        await make(harness, "b", other=USES)
        await make(harness, "c", test=USES, other=USES)
        seen = [(each.name, set(each.grants), each.elsewhere) for each in await harness.engine.tokens(OPERATOR)]
        assert seen == [("a", {"test"}, False), ("c", {"test"}, True)]
        assert [each.name for each in await harness.engine.tokens(OF_BOTH)] == ["a", "b", "c"]
        assert [each.name for each in await harness.engine.tokens(MIXED)] == ["a", "c"]

    async def test_who_manages_nothing_is_told_so(self, harness: Harness) -> None:
        with pytest.raises(Forbidden, match="manages no backend"):
            await harness.engine.tokens(PORTAL)
        with pytest.raises(Forbidden, match="manages no backend"):
            await harness.engine.revoke_token(PORTAL, "laptop")


class TestRevoking:
    async def test_it_opens_nothing_from_then_on(self, harness: Harness) -> None:
        secret = await make(harness)
        assert await who(harness.engine, secret) is not None
        harness.clock.advance(60)
        done = await harness.engine.revoke_token(OPERATOR, "laptop")
        assert (done.changed, done.token.state) == (True, TokenState.REVOKED)
        assert (done.token.revoked_at, done.token.revoked_by) == (harness.clock.now(), "portal")
        assert await who(harness.engine, secret) is None

    async def test_twice_says_so_and_keeps_who_did(self, harness: Harness) -> None:
        await make(harness)
        first = await harness.engine.revoke_token(OPERATOR, "laptop")
        harness.clock.advance(60)
        again = await harness.engine.revoke_token(evolve(OPERATOR, name="another"), "laptop")
        assert (again.changed, again.token) == (False, first.token)

    async def test_all_of_its_backends_must_be_managed(self, harness: Harness) -> None:
        secret = await make(harness, test=USES, other=USES)
        for caller in (OPERATOR, MIXED):
            with pytest.raises(Forbidden, match="opens backends, too, that this token does not manage"):
                await harness.engine.revoke_token(caller, "laptop")
        assert await who(harness.engine, secret) is not None
        assert (await harness.engine.revoke_token(OF_BOTH, "laptop")).changed

    async def test_what_is_not_theirs_looks_unknown(self, harness: Harness) -> None:
        await make(harness, "theirs", other=USES)
        for name in ("theirs", "nobody's"):
            with pytest.raises(NotFound):
                await harness.engine.revoke_token(OPERATOR, name)

    async def test_a_backend_that_left_the_settings_opens_nothing_and_keeps_nothing(self, harness: Harness) -> None:
        both = await make(harness, "both", test=USES, other=USES)
        gone = await make(harness, "gone", other=USES)
        del harness.context.backends["other"]
        harness.engine.forget_tokens()
        found = await who(harness.engine, both)
        assert found is not None
        assert found.backends == ("test",)
        assert await who(harness.engine, gone) is None
        assert (await harness.engine.revoke_token(OPERATOR, "both")).changed

    async def test_who_did_what_is_logged_without_a_token(self, harness: Harness) -> None:
        secret, asked = new()
        with structlog.testing.capture_logs() as entries:
            await harness.engine.create_token(OPERATOR, asked)
            await harness.engine.create_token(OPERATOR, asked)
            await harness.engine.revoke_token(OPERATOR, "laptop")
            await harness.engine.revoke_token(OPERATOR, "laptop")
            await who(harness.engine, secret)
        assert [(entry["event"], entry["name"]) for entry in entries] == [
            ("token_created", "laptop"),
            ("token_revoked", "laptop"),
            ("token_refused", "laptop"),
        ]
        assert secret not in repr(entries)
        assert repr(asked.digest) not in repr((entries, asked))


class TestMemory:
    async def test_another_controller_believes_for_some_seconds_if_it_hears_nothing(
        self, harness: Harness, second: Engine
    ) -> None:
        secret = await make(harness)
        assert await who(second, secret) is not None
        await harness.engine.revoke_token(OPERATOR, "laptop")
        harness.clock.advance(FRESH_SECONDS - 0.001)
        assert await who(second, secret) is not None, "the memory is tested: without it, this would be None"
        harness.clock.advance(0.001)
        assert await who(second, secret) is None

    async def test_what_it_hears_counts_at_once(self, harness: Harness, second: Engine) -> None:
        secret, asked = new()
        assert await who(second, secret) is None
        await harness.engine.create_token(OPERATOR, asked)
        assert await who(second, secret) is None, "remembered as unknown"
        second.forget_tokens()
        assert await who(second, secret) is not None
        await harness.engine.revoke_token(OPERATOR, "laptop")
        second.forget_tokens()
        assert await who(second, secret) is None

    async def test_without_a_database_only_what_is_remembered_is_recognised(self, harness: Harness) -> None:
        secret = await make(harness)
        assert await who(harness.engine, secret) is not None
        await harness.context.db.close()
        assert await who(harness.engine, secret) is not None
        with pytest.raises(Unavailable):
            await who(harness.engine, form.make())
        harness.clock.advance(FRESH_SECONDS)
        with pytest.raises(Unavailable):
            await who(harness.engine, secret)

    def test_an_answer_that_was_overtaken_is_not_kept(self) -> None:
        known = KnownTokens()
        generation = known.generation
        known.forget()
        known.remember(b"d", None, asked_at=0, generation=generation)
        assert known.find(b"d", now=0) is None

    def test_guesses_are_bounded_and_push_out_no_token(self) -> None:
        known = KnownTokens()
        row = TokenRow("laptop", "client", NOW, "portal", None, None, None, {})
        known.remember(b"mine", row, asked_at=0, generation=0)
        for number in range(2 * MOST_UNKNOWN):
            known.remember(number.to_bytes(4, "big"), None, asked_at=0, generation=0)
        assert len(known) == MOST_UNKNOWN + 1
        assert known.find(b"mine", now=0) == (row,)
        assert known.find((2 * MOST_UNKNOWN - 1).to_bytes(4, "big"), now=0) == (None,)
        assert known.find((0).to_bytes(4, "big"), now=0) is None

    def test_a_token_that_appears_is_no_longer_unknown(self) -> None:
        known = KnownTokens()
        row = TokenRow("laptop", "client", NOW, "portal", None, None, None, {})
        known.remember(b"d", None, asked_at=0, generation=0)
        known.remember(b"d", row, asked_at=FRESH_SECONDS, generation=0)
        assert (known.find(b"d", now=FRESH_SECONDS), len(known)) == ((row,), 1)


@given(st.dictionaries(st.sampled_from("abc"), st.frozensets(st.sampled_from(list(Verb)))))
def test_a_token_opens_one_door_or_none(grants: dict[str, frozenset[Verb]]) -> None:
    verbs = set().union(*grants.values())
    client = Verb.AGENT not in verbs and all(Verb.READ in granted for granted in grants.values())
    sensible = bool(grants) and all(grants.values()) and (client or verbs == {Verb.AGENT})
    if not sensible:
        with pytest.raises(Rejected):
            kind_of(grants)
    else:
        assert (kind_of(grants) is TokenKind.AGENT) == (verbs == {Verb.AGENT})


def test_tokens_have_their_form_and_differ() -> None:
    made = {form.make() for _ in range(100)}
    assert len(made) == 100
    assert all(form.FORM.fullmatch(each) for each in made)
