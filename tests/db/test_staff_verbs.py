"""What each staff verb does, and what it refuses to take."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal

import pytest

from tests.db.test_staff import NO_LIMITS, Scene, employ, set_up
from tokenlib import AlreadyRefunded, InvalidInput, PermissionDenied, UnknownOrganization
from tokenlib.domain import Limits
from tokenlib.embedded import Embedded
from tokenlib.errors import AlreadySettled, NotFound, UnknownFeature, UnknownPlan, UnknownTokenType
from tokenlib.testing import TestClock


@pytest.fixture(scope="module")
def make(token_server: Embedded) -> Iterator[Callable[[], Scene]]:
    with set_up(token_server) as make:
        yield make


@pytest.fixture
def scene(make: Callable[[], Scene]) -> Scene:
    """New people and a new organization, in a database that other tests have used."""
    return make()


@pytest.fixture(scope="module")
def untouched(token_server: Embedded) -> Iterator[Scene]:
    """Shared by tests after which nothing has changed."""
    with set_up(token_server) as make:
        yield make()


@pytest.fixture
def alone(token_server: Embedded) -> Iterator[Scene]:
    """A database for one test: where it matters who else is staff, or what time it is."""
    with set_up(token_server) as make:
        yield make()


def test_a_cost_holds_from_now_on_and_a_hold_keeps_its_own(alone: Scene) -> None:
    tokens = alone.tokens
    held = tokens.reserve(alone.organization, alone.member, "generate_goal")
    tokens.staff_set_cost(alone.admin, "generate_goal", 7, reason="dearer model")
    assert tokens.deduct(held).tokens_deducted == 3
    used = tokens.deduct_tokens(alone.organization, alone.member, "generate_goal")
    assert used.tokens_deducted == 7
    assert tokens.catalog().features["generate_goal"].cost == 7


def test_an_allowance_comes_with_the_next_period(alone: Scene) -> None:
    tokens = alone.tokens
    tokens.staff_set_allowance(alone.admin, "pro", "forecast", 60, reason="a better plan")
    assert tokens.get_token_balance(alone.organization, "forecast").balance == 30
    TestClock(alone.database).advance(timedelta(days=31))
    assert tokens.get_token_balance(alone.organization, "forecast").balance == 60


def test_an_organization_is_throttled_and_set_free(scene: Scene) -> None:
    tokens = scene.tokens

    def rule() -> str | None:
        return tokens.can_use(
            scene.organization, scene.member, "generate_insight", 2, limits=True
        ).rule

    tokens.staff_set_limits(scene.admin, scene.organization, NO_LIMITS, reason="trusted")
    assert rule() is None
    throttle = Limits(None, None, 1, None, None, None)
    tokens.staff_set_limits(scene.admin, scene.organization, throttle, reason="abuse")
    assert rule() == "rate_limited"
    tokens.staff_set_limits(scene.admin, scene.organization, None, reason="they have stopped")
    own = scene.rows("select 1 from ai_token_limits where organization_id = %s", scene.organization)
    assert own == []


def test_the_switch_of_one_organization_says_what_it_was(alone: Scene) -> None:
    for mode in ("off", "enforce"):
        alone.tokens.staff_set_mode(alone.admin, mode, alone.organization, reason="a test")
    rows = alone.rows(
        "select before ->> 'mode', after ->> 'mode' from ai_token_changes order by created_at"
    )
    assert rows == [(None, "off"), ("off", "enforce")]


def test_the_last_admin_stays(alone: Scene) -> None:
    tokens, admin = alone.tokens, alone.admin
    for role in (None, "support"):
        with pytest.raises(PermissionDenied, match="last admin"):
            tokens.staff_set_staff(admin, admin, role, reason="a slip")
    other = uuid.uuid4()
    tokens.staff_set_staff(
        admin, other, "admin", email="other@example.org", name="Other", reason="a second one"
    )
    tokens.staff_set_staff(other, admin, None, reason="left")
    with pytest.raises(PermissionDenied, match="Only staff"):
        tokens.staff_set_cost(admin, "generate_goal", 4, reason="in an old tab")
    with pytest.raises(PermissionDenied, match="last admin"):
        tokens.staff_set_staff(other, other, None, reason="a slip")


def test_two_admins_cannot_remove_each_other_at_once(alone: Scene) -> None:
    for _ in range(5):
        with alone.database.connect() as owner:
            owner.execute("delete from tokenlib_staff")
            one, two = (employ(owner, uuid.uuid4(), "admin") for _ in range(2))
        with ThreadPoolExecutor(2) as threads:
            tries = [
                threads.submit(alone.tokens.staff_set_staff, who, whom, None, reason="a race")
                for who, whom in ((one, two), (two, one))
            ]
        outcomes = sorted(type(one.exception()).__name__ for one in tries)
        assert outcomes == ["NoneType", "PermissionDenied"]


@pytest.mark.one_node
@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda s: s.tokens.staff_set_cost(s.admin, "generate_goal", 0, reason="r"), "cost"),
        (lambda s: s.tokens.staff_set_cost(s.admin, "generate_goal", -1, reason="r"), "cost"),
        (lambda s: s.tokens.staff_set_cost(s.admin, "generate_goal", 2**70, reason="r"), "cost"),
        (lambda s: s.tokens.staff_set_cost(s.admin, "typo", 1, reason="r"), "feature"),
        (
            lambda s: s.tokens.staff_set_unit_size(s.admin, "generate_goal", 0, reason="r"),
            "unit_size",
        ),
        (lambda s: s.tokens.staff_set_unit_size(s.admin, "typo", 1, reason="r"), "feature"),
        (
            lambda s: s.tokens.staff_set_allowance(s.admin, "pro", "general", -1, reason="r"),
            "allowance",
        ),
        (lambda s: s.tokens.staff_set_allowance(s.admin, "gold", "general", 1, reason="r"), "plan"),
        (
            lambda s: s.tokens.staff_set_allowance(s.admin, "pro", "shared", 1, reason="r"),
            "token_type",
        ),
        (lambda s: s.tokens.staff_set_limits(s.admin, None, None, reason="r"), "limits"),
        (
            lambda s: s.tokens.staff_set_limits(
                s.admin, None, Limits(0, None, None, None, None, None), reason="r"
            ),
            "requests_per_minute",
        ),
        (
            lambda s: s.tokens.staff_set_limits(
                s.admin, None, Limits(None, Decimal("NaN"), None, None, None, None), reason="r"
            ),
            "seconds_between_requests",
        ),
        (
            lambda s: s.tokens.staff_set_parameters(s.admin, hold_life=timedelta(0), reason="r"),
            "hold_life",
        ),
        (
            lambda s: s.tokens.staff_set_parameters(s.admin, top_up_block=0, reason="r"),
            "top_up_block",
        ),
        (
            lambda s: s.tokens.staff_set_parameters(
                s.admin, token_cost_cents=Decimal("NaN"), reason="r"
            ),
            "token_cost_cents",
        ),
        (lambda s: s.tokens.staff_set_staff(s.admin, s.support, "owner", reason="r"), "role"),
        (
            lambda s: s.tokens.staff_set_staff(s.admin, s.support, "admin", -1, reason="r"),
            "grants_per_day",
        ),
        (lambda s: s.tokens.staff_set_staff(s.admin, s.member, "support", reason="r"), "email"),
        (
            lambda s: s.tokens.staff_set_staff(
                s.admin, s.member, "support", email="x@example.org", reason="r"
            ),
            "name",
        ),
        (
            lambda s: s.tokens.staff_set_staff(
                s.admin, s.member, "support", email=f"{s.support}@example.org", name="N", reason="r"
            ),
            "email",
        ),
        (
            lambda s: s.tokens.staff_set_staff(
                s.admin, s.member, "support", email="no address", name="N", reason="r"
            ),
            "email",
        ),
        (lambda s: s.tokens.staff_change_plan(s.admin, s.organization, "gold", reason="r"), "plan"),
        (
            lambda s: s.tokens.staff_set_status(s.admin, s.organization, "gone", reason="r"),
            "status",
        ),
        (lambda s: s.tokens.staff_set_mode(s.admin, "on", reason="r"), "mode"),
        (
            lambda s: s.tokens.staff_grant(s.admin, s.organization, "typo", 1, reason="r"),
            "token_type",
        ),
        (lambda s: s.tokens.staff_release(s.admin, s.hold.id, reason="r"), "organization"),
    ],
)
def test_bad_input_names_its_field_and_changes_nothing(
    untouched: Scene, call: Callable[[Scene], object], field: str
) -> None:
    before = untouched.everything()
    with pytest.raises(InvalidInput) as refused:
        call(untouched)
    assert refused.value.field == field
    assert untouched.everything() == before


def test_what_does_not_exist_is_named(untouched: Scene) -> None:
    tokens, admin, nobody = untouched.tokens, untouched.admin, uuid.uuid4()
    with pytest.raises(UnknownOrganization):
        tokens.staff_grant(admin, nobody, "general", 1, reason="r")
    with pytest.raises(UnknownOrganization):
        tokens.staff_set_limits(admin, nobody, NO_LIMITS, reason="r")
    with pytest.raises(UnknownOrganization):
        tokens.staff_change_plan(admin, nobody, "pro", reason="r")
    with pytest.raises(NotFound, match="staff person"):
        tokens.staff_set_staff(admin, nobody, None, reason="r")
    with pytest.raises(NotFound, match="finding"):
        tokens.staff_settle_finding(admin, untouched.organization, nobody, reason="r")
    with pytest.raises(UnknownFeature, match="generate_goal"):
        tokens.staff_set_cost(admin, "typo", 1, reason="r")
    with pytest.raises(UnknownPlan, match="enterprise"):
        tokens.staff_set_allowance(admin, "gold", "general", 1, reason="r")
    with pytest.raises(UnknownTokenType, match="goal_generation"):
        tokens.staff_set_allowance(admin, "pro", "typo", 1, reason="r")


def test_a_second_time_is_named(scene: Scene) -> None:
    tokens, admin = scene.tokens, scene.admin
    tokens.staff_refund(admin, scene.usage.id, scene.organization, reason="r")
    with pytest.raises(AlreadyRefunded):
        tokens.staff_refund(admin, scene.usage, reason="r")
    tokens.staff_settle_finding(admin, scene.organization, scene.finding, reason="r")
    with pytest.raises(AlreadySettled):
        tokens.staff_settle_finding(admin, scene.organization, scene.finding, reason="r")
    tokens.staff_release(admin, scene.hold, reason="r")
    tokens.staff_release(admin, scene.hold.id, scene.organization, reason="r")
    released = scene.rows(
        "select 1 from ai_token_events where kind = 'release' and subject_id = %s", scene.hold.id
    )
    assert len(released) == 1
