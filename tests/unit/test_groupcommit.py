"""Group commit: who shares with whom, and that everybody gets an answer of his own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from emailsvc.db.groupcommit import GroupCommit, proves_rollback
from tests.servers import wait_for


class Air:
    """Transactions that last until they are let go, each with the outcome that the test gives it."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.alone: list[int] = []
        self.landing: list[Future[Callable[[int], str]]] = []
        self.commit = GroupCommit[int, str](self._together, self._alone)
        self.pool = ThreadPoolExecutor(20)

    def _together(self, items: list[int]) -> Sequence[str]:
        self.landing.append(Future())
        self.groups.append(sorted(items))
        act = self.landing[-1].result(30)
        return [act(item) for item in items]

    def _alone(self, item: int) -> str:
        self.alone.append(item)
        if item < 0:
            raise ValueError(item)
        return f"alone {item}"

    def call(self, *items: int, seconds: float = 30) -> list[Future[str]]:
        """Each in a thread of its own, which has taken off or waits when this returns."""
        made = []
        for item in items:
            flying, waiting = len(self.groups), len(self.commit._waiting)
            made.append(self.pool.submit(self.commit, item, seconds))
            wait_for(partial(self._is_more, flying, waiting), 10, "the call to begin")
        return made

    def _is_more(self, flying: int, waiting: int) -> bool:
        return len(self.groups) > flying or len(self.commit._waiting) > waiting

    def land(self, number: int, outcome: Callable[[int], str] = str) -> None:
        wait_for(lambda: len(self.landing) > number, 10, f"transaction {number}")
        self.landing[number].set_result(outcome)


@pytest.fixture
def air() -> Air:
    return Air()


def failing(exc: BaseException) -> Callable[[int], str]:
    def fail(_item: int) -> str:
        raise exc

    return fail


def refused(sqlstate: str) -> DBAPIError:
    error = psycopg.errors.lookup(sqlstate)("no")
    made: Any = DBAPIError.instance("INSERT", {}, error, psycopg.Error)
    assert isinstance(made, DBAPIError)
    return made


def test_the_first_goes_at_once_and_those_that_come_meanwhile_share_the_next(air: Air) -> None:
    first = air.call(1)
    rest = air.call(2, 3, 4)
    assert air.groups == [[1]]
    air.land(0)
    assert first[0].result(10) == "1"
    air.land(1)
    assert [one.result(10) for one in rest] == ["2", "3", "4"]
    assert air.groups == [[1], [2, 3, 4]]


def test_one_after_the_other_each_goes_alone_and_in_its_own_thread() -> None:
    threads = []

    def together(items: list[int]) -> list[int]:
        threads.append(threading.current_thread())
        return items

    commit = GroupCommit[int, int](together, lambda item: -item)
    assert [commit(item) for item in (1, 2, 3)] == [1, 2, 3]
    assert set(threads) == {threading.current_thread()}


def test_a_leader_makes_one_transaction_and_hands_over_before_its_own_answer(air: Air) -> None:
    """Or the first of a busy hour would work for the others for ever."""
    first, second = air.call(1), air.call(2)
    air.land(0)
    assert first[0].result(10) == "1"
    wait_for(lambda: len(air.groups) == 2, 10, "the second transaction, or the third call would share it")
    third = air.call(3)
    assert not second[0].done()
    air.land(1)
    assert second[0].result(10) == "2"
    air.land(2)
    assert third[0].result(10) == "3"


@pytest.mark.parametrize("sqlstate", ["21000", "22001", "22P05", "23514", "40P01", "55P03", "57014"])
def test_what_was_rolled_back_is_tried_by_each_caller_alone(air: Air, sqlstate: str) -> None:
    air.call(1)
    calls = air.call(2, -3, 4)
    air.land(0)
    air.land(1, failing(refused(sqlstate)))
    assert (calls[0].result(10), calls[2].result(10)) == ("alone 2", "alone 4")
    with pytest.raises(ValueError, match="-3"):
        calls[1].result(10)
    assert sorted(air.alone) == [-3, 2, 4]


def test_what_the_driver_cannot_send_fails_nobody_else(air: Air) -> None:
    """A mail server's reply in a character that a LATIN1 database does not have, say."""
    air.call(1)
    calls = air.call(2, 3)
    air.land(0)
    air.land(1, failing(UnicodeEncodeError("latin-1", "✓", 0, 1, "not there")))
    assert [call.result(10) for call in calls] == ["alone 2", "alone 3"]


@pytest.mark.parametrize("sqlstate", ["08006", "53100", "57P01", "40001", "XX000", "42P01"])
def test_what_is_not_known_to_be_rolled_back_is_told_to_all_and_tried_by_nobody(air: Air, sqlstate: str) -> None:
    air.call(1)
    calls = air.call(2, 3)
    air.land(0)
    error = refused(sqlstate)
    air.land(1, failing(error))
    assert [call.exception(10) for call in calls] == [error, error]
    assert air.alone == []


def test_the_next_transaction_is_made_whatever_became_of_the_last(air: Air) -> None:
    first, second = air.call(1), air.call(2)
    air.land(0, failing(OperationalError("COMMIT", {}, Exception("gone"))))
    air.land(1)
    assert isinstance(first[0].exception(10), OperationalError)
    assert second[0].result(10) == "2"


def test_when_the_leader_is_stopped_its_followers_are_answered_and_the_next_goes_on(air: Air) -> None:
    air.call(1)
    group = air.call(2, 3)
    air.land(0)
    wait_for(lambda: len(air.groups) == 2, 10, "the group to be on its way")
    last = air.call(4)
    air.land(1, failing(SystemExit()))
    assert {type(call.exception(10)) for call in group} == {SystemExit, PoolTimeout}
    air.land(2)
    assert last[0].result(10) == "4"


def test_nobody_waits_for_longer_than_it_has(air: Air) -> None:
    """Neither for its turn nor for the transaction that has taken it along; and it is not done after it gave up."""
    first = air.call(1)
    late, patient = air.call(2, seconds=0.5) + air.call(3)
    assert isinstance(late.exception(10), PoolTimeout)
    air.land(0)
    assert first[0].result(10) == "1"
    wait_for(lambda: len(air.groups) == 2, 10, "the second transaction")
    assert air.groups[1] == [3]
    assert air.commit._waiting == []
    air.land(1)
    assert patient.result(10) == "3"


def test_who_has_most_time_left_leads_so_that_its_time_is_the_groups(air: Air) -> None:
    first = air.call(1)
    short, long = air.call(2, seconds=2) + air.call(3)
    air.land(0)
    assert isinstance(short.exception(10), PoolTimeout), "it waits for what 3 makes for as long as it has"
    assert air.groups[1] == [2, 3]
    air.land(1)
    assert (first[0].result(10), long.result(10)) == ("1", "3")


def test_a_hundred_threads_get_their_own_answers() -> None:
    sizes: list[int] = []

    def together(items: list[int]) -> list[int]:
        sizes.append(len(items))
        if any(item % 50 == 7 for item in items):
            raise refused("22P05")
        return [item * 2 for item in items]

    def alone(item: int) -> int:
        if item % 50 == 7:
            raise ValueError(item)
        return item * 2

    commit = GroupCommit[int, int](together, alone)
    outcomes: dict[int, int | str] = {}

    def post(thread: int) -> None:
        for item in range(thread * 100, thread * 100 + 100):
            try:
                outcomes[item] = commit(item)
            except ValueError:
                outcomes[item] = "refused"

    with ThreadPoolExecutor(100) as pool:
        list(pool.map(post, range(100)))
    assert outcomes == {item: "refused" if item % 50 == 7 else item * 2 for item in range(10_000)}
    assert sum(sizes) == 10_000


def test_an_error_of_the_values_or_the_constraints_proves_a_rollback_on_any_database() -> None:
    assert proves_rollback(DataError("INSERT", {}, Exception()))
    assert proves_rollback(IntegrityError("INSERT", {}, Exception()))
    assert not proves_rollback(OperationalError("INSERT", {}, Exception("database is locked")))
    assert not proves_rollback(ValueError())


def test_a_forked_child_commits_although_its_parent_was_in_the_air(air: Air) -> None:
    """Who was to land and to hand over stayed in the parent, and so may whoever had the lock."""
    first, waiting = air.call(1, 2)
    with air.commit._guard:
        child = os.fork()
        if child == 0:
            os._exit(_lands_alone(air))
    assert os.waitpid(child, 0)[1] == 0
    air.land(0)
    air.land(1)
    assert (first.result(10), waiting.result(10)) == ("1", "2"), "the parent goes on"


def _lands_alone(air: Air) -> int:
    air.landing = []
    air.pool = ThreadPoolExecutor(1)
    answer = air.pool.submit(air.commit, 3, 5)
    try:
        air.land(0)
        return 0 if answer.result(10) == "3" and air.groups[-1] == [3] else 1
    except BaseException:  # noqa: BLE001 - the child must not go on as a test run
        return 2
