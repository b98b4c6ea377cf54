"""The database stopped, killed and back: the web says so, the workers wait, nothing is lost or sent twice."""

from __future__ import annotations

import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine, update
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from emailsvc import outbox, reports
from emailsvc.app import create_app
from emailsvc.clock import monotonic
from emailsvc.db import connections, schema
from emailsvc.db.models import Email
from emailsvc.db.promptness import DATABASE_SECONDS, promptly
from emailsvc.db.sqltime import db_in
from emailsvc.delivery.drain import Drain
from emailsvc.mail import Message, Result
from emailsvc.mail.memory import MemoryTransport
from emailsvc.outbox import InDoubt, SentTogether
from emailsvc.settings import config as configuration
from emailsvc.settings.config import Config
from tests.conftest import migrate
from tests.emails import SENT, accept, row, rows
from tests.factories import new_email, payload
from tests.servers import PostgreSQL, wait_for


@pytest.fixture
def config(own_postgresql: PostgreSQL, tmp_path: Path) -> Config:
    url = own_postgresql.url(own_postgresql.create_database())
    migrate(url, tmp_path / "instance")
    return configuration.load({"DATABASE_URL": url}, tmp_path / "instance")


def _post(client: FlaskClient, email_id: str = "m-1") -> Any:
    return client.post("/webhook/email", json=payload(email_id))


def test_the_web_answers_503_while_it_is_away_and_goes_on_by_itself(
    client: FlaskClient, own_postgresql: PostgreSQL
) -> None:
    assert _post(client).status_code == 202
    own_postgresql.kill9()
    for _ in range(5):
        refused = _post(client, email_id="m-2")
        assert (refused.status_code, refused.json["code"]) == (503, "database_unavailable")
        assert int(refused.headers["Retry-After"]) > 0
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200
    own_postgresql.start()
    assert _post(client, email_id="m-2").status_code == 202
    assert _post(client).status_code == 200


def test_a_connection_that_broke_while_it_rested_is_replaced(
    client: FlaskClient, app: Flask, own_postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "FRESH_SECONDS", -1.0)  # as if it had rested for longer
    assert _post(client).status_code == 202
    own_postgresql.kill_connections(app.extensions["emailsvc"].engine.url.database)
    assert _post(client, email_id="m-2").status_code == 202


def test_a_database_that_hangs_is_not_waited_for_and_goes_on_when_it_answers(
    client: FlaskClient, own_postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a connection that is in use nor a new one waits for ever."""
    monkeypatch.setattr(connections, "HELD_SECONDS", 1.0)
    assert _post(client).status_code == 202
    own_postgresql.freeze()
    try:
        for fresh in (60.0, -1.0):
            monkeypatch.setattr(connections, "FRESH_SECONDS", fresh)
            refused = _post(client, email_id="m-2")
            assert (refused.status_code, refused.json["code"]) == (503, "database_unavailable")
    finally:
        own_postgresql.thaw()
    assert _post(client, email_id="m-2").status_code in (200, 202)  # 200 if the one that hung committed after all
    assert _post(client).status_code == 200


def test_an_outcome_in_hand_is_recorded_when_it_is_back(
    engine: Engine, config: Config, own_postgresql: PostgreSQL
) -> None:
    """The server took the mail, then the database died; the worker starts nothing more, and forgets nothing."""

    revival = threading.Thread(target=own_postgresql.start)

    def die(_mail: Message) -> Result:
        own_postgresql.kill9()
        revival.start()
        return SENT

    accept(engine, config, "a", "b")
    transport = MemoryTransport([die])
    Drain(engine, config, transport, threading.Event(), lambda: None, SentTogether(engine)).run()
    revival.join()
    assert [mail.email_id for mail in transport.attempts] == ["a", "b"]
    assert (row(engine, "a").status, row(engine, "b").status) == ("sent", "sent")
    assert reports.violations(engine, config) == []


def test_a_killed_connection_leads_to_neither_a_second_mail_nor_a_lost_one(
    engine: Engine, config: Config, own_postgresql: PostgreSQL
) -> None:
    ids = [f"m-{n}" for n in range(30)]
    accept(engine, config, *ids)
    stop, rng = threading.Event(), random.Random(7)

    def kill() -> None:
        while not stop.wait(rng.uniform(0.02, 0.4)):
            own_postgresql.kill_connections(str(engine.url.database))

    killer = threading.Thread(target=kill)
    killer.start()

    def slowly(_mail: Message) -> Result:
        stop.wait(0.05)  # long enough that kills fall into conversations, too
        return SENT

    transport = MemoryTransport(always=slowly)

    def drained() -> bool:
        try:
            Drain(engine, config, transport, threading.Event(), lambda: None, SentTogether(engine)).run()
            return reports.stats(engine).sent == 30
        except OperationalError:
            return False

    try:
        wait_for(drained, 60, "everything to be sent between the kills")
    finally:
        stop.set()
        killer.join()
    assert sorted(mail.email_id for mail in transport.attempts) == sorted(ids)


def test_a_database_that_is_killed_in_the_middle_of_shared_commits_has_each_outcome_once(
    engine: Engine, config: Config, own_postgresql: PostgreSQL
) -> None:
    """Four threads record at once; whether an outcome was committed, each finds out by its token."""
    ids = [f"m-{n}" for n in range(240)]
    outbox.accept_many(engine, [new_email(email_id) for email_id in ids], config)
    together, in_doubt = SentTogether(engine), InDoubt()
    number, one_at_a_time = itertools.count(1), threading.Lock()

    def take(_mail: Message) -> Result:
        if next(number) in (40, 120, 200):
            with one_at_a_time:  # the others may be as far as the next kill before this one has seen it start
                own_postgresql.kill9()
                own_postgresql.start()
        return SENT

    transports = [MemoryTransport(always=take) for _ in range(4)]

    def work(transport: MemoryTransport) -> None:
        while True:
            with suppress(OperationalError):  # of a claim; Huey would come again
                in_doubt.settle(engine, config)
                if outbox.look(engine) is None:
                    return
                drain = Drain(engine, config, transport, threading.Event(), lambda: None, together, in_doubt=in_doubt)
                drain.run()

    with ThreadPoolExecutor(4) as pool:
        for job in [pool.submit(work, transport) for transport in transports]:
            job.result(60)
    assert sorted(mail.email_id for each in transports for mail in each.attempts) == sorted(ids)
    assert {(each.status, each.attempts) for each in rows(engine, Email)} == {("sent", 1)}
    assert reports.violations(engine, config) == []


def test_a_claim_lost_with_its_connection_is_given_back_when_the_database_is(
    engine: Engine, config: Config, own_postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(engine, config)
    claim = outbox.claim

    def claim_and_die(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(outbox, "claim", claim)
        claim(*args, **kwargs)
        own_postgresql.kill9()
        raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

    monkeypatch.setattr(outbox, "claim", claim_and_die)
    transport, in_doubt = MemoryTransport(), InDoubt()
    with pytest.raises(OperationalError):
        Drain(engine, config, transport, threading.Event(), lambda: None, SentTogether(engine), in_doubt=in_doubt).run()
    own_postgresql.start()
    wait_for(lambda: _settled(in_doubt, engine, config), 20, "the database to take the release")
    assert (row(engine).status, row(engine).attempts, transport.attempts) == ("pending", 0, [])


def _settled(in_doubt: InDoubt, engine: Engine, config: Config) -> bool:
    try:
        in_doubt.settle(engine, config)
    except SQLAlchemyError:
        return False
    return True


def test_a_claim_whose_commit_appears_later_is_given_back_when_it_does(
    engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A synchronous standby is away: the commit waits, its rows look as before, and the release finds nothing."""
    accept(engine, config)
    claim, waiting = outbox.claim, engine.connect()

    def claim_and_wait(_engine: Any, token: str, config: Config, **_: Any) -> Any:
        monkeypatch.setattr(outbox, "claim", claim)
        waiting.execute(
            update(Email).values(status="sending", claim=token, lease_expires_at=db_in(config.lease_seconds))
        )
        raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

    monkeypatch.setattr(outbox, "claim", claim_and_wait)
    transport, in_doubt = MemoryTransport(), InDoubt()
    drain = Drain(engine, config, transport, threading.Event(), lambda: None, SentTogether(engine), in_doubt=in_doubt)
    with pytest.raises(OperationalError):
        drain.run()
    in_doubt.settle(engine, config)
    drain.run()
    assert (row(engine).status, transport.attempts) == ("pending", []), "another's lock, for now"
    waiting.commit()
    waiting.close()
    assert row(engine).status == "sending"
    in_doubt.settle(engine, config)
    drain.run()
    assert row(engine).status == "sent"


def test_a_locked_database_is_not_waited_for_beyond_the_time_of_a_request(tmp_path: Path) -> None:
    """SQLite: neither for the lock, nor for a connection, nor in the second try of the same request."""
    config = configuration.load({}, tmp_path)
    app = create_app(config)
    schema.upgrade(app)
    engine = app.extensions["emailsvc"].engine
    with engine.begin():
        for left, expected in ((0.3, OperationalError), (-1.0, PoolTimeout)):
            began = monotonic()
            with promptly(began - DATABASE_SECONDS + left), pytest.raises(expected):
                accept(engine, config, "a")
            assert monotonic() - began < 3.0
    engine.dispose()
