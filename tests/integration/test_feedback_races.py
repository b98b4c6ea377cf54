"""A report beside the outcome of the same e-mail: whichever comes second sees the first, so none is missed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from emailsvc import outbox, reports
from emailsvc.feedback.events import Event, heard
from emailsvc.feedback.reference import reference_of
from emailsvc.settings.config import Config
from tests.emails import DEFERRED, OUTAGE, REJECTED, UNCERTAIN, accept, claim, end_leases, record, row
from tests.servers import wait_for

RACES = 40


@pytest.fixture
def config(make_config: Callable[..., Config]) -> Config:
    return make_config(report_secrets="mine:0123456789abcdef", batch_size=1)


def reported(engine: Engine) -> Event:
    found = row(engine)
    return heard("bounced", reference=reference_of(found.id, found.message_id))


@contextmanager
def held_before_commit(engine: Engine, name: str) -> Iterator[tuple[threading.Event, threading.Event]]:
    """The thread of that name says when it is about to commit, and does so when it is let."""
    there, go = threading.Event(), threading.Event()

    def hold(_connection: Any) -> None:
        if threading.current_thread().name == name:
            there.set()
            assert go.wait(20)

    event.listen(engine, "commit", hold)
    try:
        yield there, go
    finally:
        go.set()
        event.remove(engine, "commit", hold)


def waits_for_a_lock(engine: Engine) -> bool:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with engine.connect() as connection:
        return bool(connection.execute(text(waiting)).scalar_one())


OUTCOMES: dict[str, Callable[[Engine, Config, Any], object]] = {
    "uncertain": lambda engine, config, made: record(engine, config, made, UNCERTAIN),
    "deferred": lambda engine, config, made: record(engine, config, made, DEFERRED),
    "rejected": lambda engine, config, made: record(engine, config, made, REJECTED),
    "outage": lambda engine, config, made: record(engine, config, made, OUTAGE),
    "released": lambda engine, config, made: outbox.release(engine, made.token, config),
    "swept": lambda engine, config, made: outbox.sweep(engine, config),
}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("first", ["the outcome", "the report"])
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_second_waits_for_the_first_and_sees_what_it_did(
    engine: Engine, config: Config, outcome: str, first: str
) -> None:
    accept(engine, config)
    made = claim(engine, config)
    if outcome == "swept":
        end_leases(engine)
    told = reported(engine)
    both = {
        "the outcome": threading.Thread(target=lambda: OUTCOMES[outcome](engine, config, made), name="the outcome"),
        "the report": threading.Thread(target=lambda: outbox.hear(engine, [told]), name="the report"),
    }
    second = next(name for name in both if name != first)
    with held_before_commit(engine, first) as (there, go):
        both[first].start()
        assert there.wait(20)
        both[second].start()
        wait_for(lambda: waits_for_a_lock(engine) or not both[second].is_alive(), 20, "the second to wait")
        go.set()
        for thread in both.values():
            thread.join(20)
    assert row(engine).status == "sent"
    assert reports.violations(engine, config) == []


def test_of_many_races_none_is_missed(engine: Engine, config: Config) -> None:
    with ThreadPoolExecutor(2) as pool:
        for number in range(RACES):
            name = f"m-{number}"
            accept(engine, config, name)
            made = claim(engine, config)
            found = row(engine, name)
            told = heard("delivered", reference=reference_of(found.id, found.message_id))
            start = threading.Barrier(2)

            def end(made: outbox.Claim = made, start: threading.Barrier = start) -> None:
                start.wait(20)
                record(engine, config, made, UNCERTAIN)

            def tell(told: Event = told, start: threading.Barrier = start) -> None:
                start.wait(20)
                outbox.hear(engine, [told])

            for done in [pool.submit(end), pool.submit(tell)]:
                done.result(20)
            assert row(engine, name).status == "sent", f"missed in race {number}"
    assert reports.violations(engine, config) == []
