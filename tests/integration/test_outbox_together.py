"""Outcomes of several threads in one commit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest
from sqlalchemy import Engine, select

from emailsvc import outbox
from emailsvc.db.models import Email
from emailsvc.outbox import Claim, Recorded, SentTogether
from emailsvc.settings.config import Config
from emailsvc.vocabulary import Status
from tests.emails import SENT, accept, claim, row
from tests.machine import ScriptedEngine
from tests.servers import wait_for

SECONDS = 30
IDS = [f"m-{n}" for n in range(5)]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(5) as made:
        yield made


@pytest.fixture
def made(engine: Engine, config: Config) -> Claim:
    accept(engine, config, *IDS)
    return claim(engine, config)


@pytest.fixture
def together(engine: Engine) -> SentTogether:
    return SentTogether(engine)


def _record_as_a_drain_does(engine: Engine, config: Config, together: SentTogether, made: Claim, n: int) -> Recorded:
    shared = together.record(made.rows[n], made.token, f"250 taken as {n}", 0.5)
    return shared[0] if shared else outbox.record(engine, made.rows[n], made.token, SENT, config)


def _states(engine: Engine) -> list[str]:
    return [row(engine, email_id).status for email_id in IDS]


def _in_two_flights(engine: Engine, second: str = "ok") -> tuple[SentTogether, list[str]]:
    """The first takes off when four more wait for the next; ``second``: what becomes of that one's transaction."""
    flights: list[str] = []

    def ask() -> str:
        flights.append(threading.current_thread().name)
        if len(flights) == 1:
            wait_for(lambda: len(together._commit._waiting) == 4, SECONDS, "the others to wait for the next")
        return second if len(flights) == 2 else "ok"

    together = SentTogether(cast(Engine, ScriptedEngine(engine, ask)))
    return together, flights


def test_those_that_come_while_one_is_written_share_the_next_commit(
    engine: Engine, made: Claim, pool: ThreadPoolExecutor
) -> None:
    together, flights = _in_two_flights(engine)
    futures = [
        pool.submit(together.record, claimed, made.token, f"250 taken as {n}", n / 10)
        for n, claimed in enumerate(made.rows)
    ]
    answers = [future.result(SECONDS) for future in futures]
    assert [answer and answer[0] for answer in answers] == [Recorded(True, True, Status.SENT)] * 5
    assert len(flights) == 2
    assert [(row(engine, one).status, row(engine, one).attempts) for one in IDS] == [("sent", 1)] * 5
    told = [(row(engine, one).reply, row(engine, one).conversation_seconds) for one in IDS]
    assert told == [(f"250 taken as {n}", n / 10) for n in range(5)]


def test_a_shared_outcome_tells_whether_delivery_is_still_running(
    engine: Engine, made: Claim, together: SentTogether
) -> None:
    outbox.pause(engine, "by hand")
    shared = together.record(made.rows[0], made.token, "250 ok", 0.5)
    assert shared is not None
    assert shared[0] == Recorded(True, False, Status.SENT)


def test_it_looks_at_the_switch_when_it_is_written_however_long_that_was_waited_for(
    engine: Engine, made: Claim, pool: ThreadPoolExecutor
) -> None:
    """Or each thread of many would look once more before its next conversation."""
    together, _ = _in_two_flights(engine)
    futures = [pool.submit(together.record, claimed, made.token, "250 ok", 0.5) for claimed in made.rows]
    moments = sorted(answer[1] for future in futures if (answer := future.result(SECONDS)))
    assert moments[0] < moments[1] == moments[4]


def test_a_row_that_is_no_longer_in_hand_spoils_nothing_for_the_others(
    engine: Engine, config: Config, made: Claim, together: SentTogether
) -> None:
    outbox.release(engine, made.token, config, [made.rows[1].id])
    outcomes = [_record_as_a_drain_does(engine, config, together, made, n) for n in range(5)]
    assert [outcome.won for outcome in outcomes] == [True, False, True, True, True]
    assert _states(engine) == ["sent", "pending", "sent", "sent", "sent"]


def test_what_is_to_be_erased_ends_erased_beside_others_that_do_not(
    engine: Engine, config: Config, made: Claim, together: SentTogether, pool: ThreadPoolExecutor
) -> None:
    outbox.erase(engine, "m-2@example.com")
    jobs = [pool.submit(_record_as_a_drain_does, engine, config, together, made, n) for n in range(5)]
    assert all(job.result(SECONDS).won for job in jobs)
    assert _states(engine) == ["sent"] * 5
    assert [row(engine, one).recipient is None for one in IDS] == [False, False, True, False, False]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_row_that_somebody_keeps_locked_does_not_hold_up_the_others(
    engine: Engine, config: Config, made: Claim, together: SentTogether, pool: ThreadPoolExecutor
) -> None:
    with engine.begin() as other:
        other.execute(select(Email.id).where(Email.email_id == "m-2").with_for_update())
        jobs = [pool.submit(_record_as_a_drain_does, engine, config, together, made, n) for n in range(5)]
        wait_for(lambda: sum(job.done() for job in jobs) == 4, SECONDS, "the others to be recorded")
        assert not jobs[2].done()
        assert _states(engine) == ["sent", "sent", "sending", "sent", "sent"]
    assert all(job.result(SECONDS).won for job in jobs)
    assert _states(engine) == ["sent"] * 5


@pytest.mark.parametrize("fault", ["rolled back", "lost"])
def test_when_the_shared_commit_is_in_doubt_each_finds_out_by_its_token(
    engine: Engine, config: Config, made: Claim, pool: ThreadPoolExecutor, fault: str
) -> None:
    """Exactly once: none is recorded twice, and none is taken for lost."""
    together, flights = _in_two_flights(engine, fault)
    jobs = [pool.submit(_record_as_a_drain_does, engine, config, together, made, n) for n in range(5)]
    assert all(job.result(SECONDS).won for job in jobs)
    assert len(flights) == 2
    assert [(row(engine, one).status, row(engine, one).attempts) for one in IDS] == [("sent", 1)] * 5
