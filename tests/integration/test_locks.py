"""Named locks: one contract for the Redis ones and the local ones, and a Redis that is flushed, killed or hangs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from emailsvc.settings import config
from emailsvc.wakeups import queue
from emailsvc.wakeups.locks import LocalLocks, Locks, RedisLocks
from tests.servers import Redis, wait_for

BOUNDED_SECONDS = 3.0
"""Taking and giving back, each with one answer that does not come within a second."""


def redis_locks(url: str, folder: Path) -> RedisLocks:
    """As ``create_app`` makes them."""
    client = queue.redis_client(queue.build(config.load({"REDIS_URL": url}, folder)))
    assert client is not None
    return RedisLocks(client)


@pytest.fixture(params=["redis", "local"])
def locks(request: pytest.FixtureRequest, tmp_path: Path) -> Locks:
    if request.param == "local":
        return LocalLocks()
    return redis_locks(request.getfixturevalue("redis_url"), tmp_path)


@pytest.fixture
def own(own_redis: Redis, tmp_path: Path) -> Locks:
    return redis_locks(own_redis.url, tmp_path)


def is_free(locks: Locks, name: str = "sweep") -> bool:
    with locks.hold(name, 30) as held:
        return held


def work_that_fails(locks: Locks, meanwhile: Callable[[], object] = lambda: None) -> None:
    with locks.hold("sweep", 30):
        meanwhile()
        raise RuntimeError("the work failed")


def test_one_holder_at_a_time(locks: Locks) -> None:
    with locks.hold("sweep", 30) as first, locks.hold("sweep", 30) as second:
        assert (first, second) == (True, False)


def test_a_miss_takes_nothing_away_from_the_holder(locks: Locks) -> None:
    with locks.hold("sweep", 30):
        assert not is_free(locks)
        assert not is_free(locks)
    assert is_free(locks)


def test_other_names_are_other_locks(locks: Locks) -> None:
    with locks.hold("sweep", 30) as sweep, locks.hold("purge", 30) as purge:
        assert sweep
        assert purge


def test_it_is_free_again_after_its_holder_failed(locks: Locks) -> None:
    with pytest.raises(RuntimeError, match="the work failed"):
        work_that_fails(locks)
    assert is_free(locks)


def test_of_many_threads_at_most_one_is_inside(locks: Locks) -> None:
    inside, most, entries = 0, 0, 0
    guard, start = threading.Lock(), threading.Barrier(8)

    def work() -> None:
        nonlocal inside, most, entries
        start.wait()
        for _ in range(60):
            with locks.hold("sweep", 30) as held:
                if not held:
                    continue
                with guard:
                    inside, entries = inside + 1, entries + 1
                    most = max(most, inside)
                time.sleep(0.0005)  # long enough for the others to try
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == 1
    assert 1 <= entries < 8 * 60


def test_an_expired_lock_lets_another_one_in_and_its_late_holder_frees_nothing(locks: Locks) -> None:
    with ExitStack() as late, ExitStack() as present:
        assert late.enter_context(locks.hold("sweep", 0.2))
        wait_for(lambda: present.enter_context(locks.hold("sweep", 30)), 5, "the first lock to expire")
        late.close()
        assert not is_free(locks)
        present.close()
        assert is_free(locks)


def test_a_holder_whose_lock_expired_ends_without_an_exception(locks: Locks) -> None:
    with locks.hold("sweep", 0.05) as held:
        assert held
        wait_for(lambda: is_free(locks), 5, "the lock to expire")


def test_two_clients_of_one_redis_exclude_each_other(redis_url: str, tmp_path: Path) -> None:
    one, other = redis_locks(redis_url, tmp_path), redis_locks(redis_url, tmp_path)
    with one.hold("sweep", 30):
        assert not is_free(other)
    assert is_free(other)


def test_a_redis_that_was_flushed_costs_the_lock_and_no_exception(own: Locks, own_redis: Redis) -> None:
    with own.hold("sweep", 30) as first:
        own_redis.flushall()
        with own.hold("sweep", 30) as second:
            assert first
            assert second
    assert is_free(own)


def test_the_late_holder_of_a_flushed_lock_does_not_free_the_next_one(own: Locks, own_redis: Redis) -> None:
    with ExitStack() as late:
        late.enter_context(own.hold("sweep", 30))
        own_redis.flushall()
        with own.hold("sweep", 30):
            late.close()
            assert not is_free(own)


def test_a_redis_that_is_killed_meanwhile_costs_no_exception(
    own: Locks, own_redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    with own.hold("sweep", 30) as held:
        own_redis.kill9()
        assert held
    assert time.monotonic() - began < BOUNDED_SECONDS
    assert "lock_not_released" in caplog.messages
    own_redis.start()
    assert is_free(own)


def test_the_works_own_failure_is_not_hidden_by_a_redis_that_is_gone(own: Locks, own_redis: Redis) -> None:
    with pytest.raises(RuntimeError, match="the work failed"):
        work_that_fails(own, own_redis.kill9)


def test_without_redis_everybody_works_because_twice_is_harmless_and_never_is_not(
    own: Locks, own_redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.kill9()
    began = time.monotonic()
    with own.hold("sweep", 30) as first, own.hold("sweep", 30) as second:
        assert first
        assert second
    assert time.monotonic() - began < BOUNDED_SECONDS
    assert [r.levelno for r in caplog.records if r.message == "lock_unavailable"] == [logging.WARNING] * 2


def test_a_hanging_redis_is_waited_for_no_longer_than_a_moment(own: Locks, own_redis: Redis) -> None:
    assert is_free(own)  # a connection is open
    own_redis.freeze()
    began = time.monotonic()
    with own.hold("sweep", 30) as held:
        taken = time.monotonic() - began
    given_back = time.monotonic() - began - taken
    own_redis.thaw()
    assert held
    assert taken < BOUNDED_SECONDS
    assert given_back < BOUNDED_SECONDS


def test_a_redis_that_hangs_before_the_release_holds_nobody_up_for_long(own: Locks, own_redis: Redis) -> None:
    with own.hold("sweep", 30) as held:
        own_redis.freeze()
        began = time.monotonic()
    assert time.monotonic() - began < BOUNDED_SECONDS
    own_redis.thaw()
    assert held


def test_a_lock_whose_answer_was_lost_is_free_after_its_time(own: Locks, own_redis: Redis) -> None:
    assert is_free(own)
    own_redis.freeze()
    with own.hold("sweep", 0.5):  # the request waits in the socket, and is carried out after the thaw
        pass
    own_redis.thaw()
    wait_for(lambda: is_free(own), 5, "the lock that nobody holds to expire")
