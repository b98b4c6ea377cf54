"""When to try again: the bounds of the backoff."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emailsvc.outbox.retry import JITTER, backoff

attempts = st.integers(1, 10**6)
seconds = st.floats(0, 1e9)


@given(attempts, seconds, seconds)
def test_a_delay_is_never_negative_and_never_above_the_cap(attempt: int, base: float, cap: float) -> None:
    assert 0 <= backoff(attempt, base, cap) <= cap


@given(st.integers(1, 60), st.floats(0.001, 1e6))
def test_each_delay_is_twice_the_one_before_within_20_per_cent(attempt: int, base: float) -> None:
    planned = base * 2 ** (attempt - 1)
    assert planned * 0.8 <= backoff(attempt, base, float("inf")) <= planned * 1.2


@given(attempts, st.floats(1, 1e9))
def test_a_cap_below_the_shortest_delay_is_kept_exactly(attempt: int, base: float) -> None:
    assert backoff(attempt, base, base * (1 - JITTER) / 2) == base * (1 - JITTER) / 2


@given(attempts, seconds)
def test_without_a_delay_there_is_none(attempt: int, cap: float) -> None:
    assert backoff(attempt, 0, cap) == 0


@pytest.mark.parametrize(("attempt", "low", "high"), [(1, 4, 6), (2, 8, 12), (3, 16, 24)])
def test_the_defaults_wait_about_5_10_and_20_seconds(attempt: int, low: float, high: float) -> None:
    delays = [backoff(attempt, 5, 3600) for _ in range(500)]
    assert low <= min(delays)
    assert max(delays) <= high


def test_e_mails_that_failed_together_do_not_come_back_together() -> None:
    delays = sorted(backoff(1, 5, 3600) for _ in range(1000))
    assert delays[0] < 4.3
    assert delays[-1] > 5.7
    assert len(set(delays)) > 900
