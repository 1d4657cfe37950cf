"""What is asked again, how long, and what the last error says. Time and chance are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import pytest

from tokenlib import BooksBroken, ConfigurationError, DatabaseUnavailable
from tokenlib.errors import TokenlibError
from tokenlib.retry import ONCE, Retry

Outcome = Literal["not_charged", "unknown"]


class Time:
    """A clock that only moves when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def retry(self, deadline: float = 5.0, chance: float = 0.5) -> Retry:
        return Retry(
            deadline=deadline, now=lambda: self.now, sleep=self.sleep, chance=lambda: chance
        )


@pytest.fixture
def time() -> Time:
    return Time()


BUSY: list[Outcome] = ["not_charged"] * 1000


def fails(*outcomes: Outcome | TokenlibError) -> Callable[[float], str]:
    """An attempt that fails in these ways, one after the other, and then answers."""
    left = list(outcomes)

    def attempt(_patience: float) -> str:
        if not left:
            return "answer"
        failure = left.pop(0)
        if isinstance(failure, TokenlibError):
            raise failure
        raise DatabaseUnavailable(f"{failure} {len(left)}", failure)

    return attempt


@pytest.mark.parametrize("repeatable", [True, False])
def test_what_was_not_charged_is_asked_again(time: Time, repeatable: bool) -> None:
    attempt = fails("not_charged", "not_charged")
    assert time.retry().run(attempt, repeatable=repeatable) == "answer"
    assert len(time.slept) == 2


def test_a_lost_reply_is_asked_again_only_where_twice_is_once(time: Time) -> None:
    assert time.retry().run(fails("unknown", "unknown"), repeatable=True) == "answer"
    time.slept.clear()
    with pytest.raises(DatabaseUnavailable) as failed:
        time.retry().run(fails("not_charged", "unknown"), repeatable=False)
    assert failed.value.outcome == "unknown"
    assert failed.value.data == {"outcome": "unknown"}
    assert len(time.slept) == 1


def test_pauses_double_up_to_a_bound_and_are_drawn_by_lot(time: Time) -> None:
    with pytest.raises(DatabaseUnavailable):
        time.retry(chance=1.0).run(fails(*BUSY), repeatable=True)
    assert time.slept[:6] == [0.05, 0.1, 0.2, 0.4, 0.8, 0.8]
    assert set(time.slept[5:]) == {0.8}
    drawn = Time()
    with pytest.raises(DatabaseUnavailable):
        drawn.retry(chance=0.25).run(fails(*BUSY), repeatable=True)
    assert drawn.slept[:3] == [0.0125, 0.025, 0.05]


@pytest.mark.parametrize("deadline", [0.3, 5.0])
def test_it_ends_at_the_deadline(time: Time, deadline: float) -> None:
    with pytest.raises(DatabaseUnavailable) as failed:
        time.retry(deadline).run(fails(*BUSY), repeatable=True)
    assert failed.value.outcome == "not_charged"
    assert sum(time.slept) < deadline
    assert sum(time.slept) > deadline - 0.8


def test_an_attempt_is_told_how_long_it_may_wait(time: Time) -> None:
    told = []

    def attempt(patience: float) -> None:
        told.append(patience)
        time.now += 2
        raise DatabaseUnavailable("busy")

    with pytest.raises(DatabaseUnavailable):
        time.retry(deadline=5, chance=0).run(attempt, repeatable=True)
    assert told == [5, 3, 1]
    with pytest.raises(DatabaseUnavailable):
        time.retry(deadline=2.25, chance=0).run(attempt, repeatable=True)
    assert told[3:] == [2.25, 0.5]  # the last is given a moment


def test_what_was_unknown_once_stays_unknown(time: Time) -> None:
    with pytest.raises(DatabaseUnavailable) as failed:
        time.retry().run(fails("unknown", *BUSY), repeatable=True)
    assert failed.value.outcome == "unknown"
    assert isinstance(failed.value.__cause__, DatabaseUnavailable)
    assert failed.value.__cause__.outcome == "not_charged"


@pytest.mark.parametrize("error", [ConfigurationError("no such database"), BooksBroken("sums")])
def test_another_error_ends_it_and_does_not_settle_what_is_unknown(
    time: Time, error: TokenlibError
) -> None:
    with pytest.raises(type(error)):
        time.retry().run(fails("not_charged", error), repeatable=True)
    with pytest.raises(DatabaseUnavailable) as failed:
        time.retry().run(fails("unknown", error), repeatable=True)
    assert failed.value.outcome == "unknown"
    assert failed.value.__cause__ is error


def test_once_is_once() -> None:
    for outcome in get_args(Outcome):
        with pytest.raises(DatabaseUnavailable) as failed:
            ONCE.run(fails(outcome), repeatable=True)
        assert failed.value.outcome == outcome
