"""Rings for threads that do not wait."""

from __future__ import annotations

import os
import threading
import time

import pytest

from emailsvc.wakeups import ringer
from emailsvc.wakeups.ringer import Ringer
from tests.servers import wait_for
from tests.unit.conftest import no_threads


def test_it_rings_at_once_and_holds_nobody_up() -> None:
    ringing, go_on = threading.Event(), threading.Event()

    def ring() -> None:
        ringing.set()
        go_on.wait(10)

    one = Ringer(ring)
    for _ in range(100):
        one.ask()
    assert ringing.wait(10)
    go_on.set()


def test_whoever_asks_during_a_ring_or_shortly_after_is_rung_for_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """That ring may have come too early for it; and twice is enough for however many."""
    monkeypatch.setattr(ringer, "PAUSE_SECONDS", 0.2)
    rings: list[float] = []
    first, go_on = threading.Event(), threading.Event()

    def ring() -> None:
        rings.append(time.monotonic())
        first.set()
        go_on.wait(10)

    one = Ringer(ring)
    one.ask()
    assert first.wait(10)
    for _ in range(100):
        one.ask()
    go_on.set()
    wait_for(lambda: len(rings) == 2, 10, "the ring for the others")
    one.ask()
    wait_for(lambda: len(rings) == 3, 10, "the ring for who asked in the pause")
    assert rings[2] - rings[1] >= 0.2
    time.sleep(0.5)
    assert len(rings) == 3


def test_who_asks_when_no_thread_can_be_started_is_not_failed_and_the_next_is_rung_for() -> None:
    rings: list[int] = []
    one = Ringer(lambda: rings.append(1))
    with no_threads():
        one.ask()
    one.ask()
    wait_for(lambda: rings, 10, "a ring")


def test_it_rings_in_a_forked_child_too() -> None:
    rings: list[int] = []
    one = Ringer(lambda: rings.append(os.getpid()))
    one.ask()
    wait_for(lambda: rings, 10, "a ring")
    child = os.fork()
    if child == 0:
        one.ask()
        deadline = time.monotonic() + 10
        while os.getpid() not in rings and time.monotonic() < deadline:
            time.sleep(0.01)
        os._exit(0 if os.getpid() in rings else 1)
    assert os.waitpid(child, 0)[1] == 0
