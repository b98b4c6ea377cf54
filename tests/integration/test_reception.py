"""Webhooks that come together: one commit and one ring for all, an answer of its own for each."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import Engine, event, insert
from sqlalchemy.exc import DataError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from emailsvc import outbox, reports
from emailsvc.clock import monotonic, utcnow
from emailsvc.db import promptness
from emailsvc.db.extensions import Base
from emailsvc.db.models import Switch
from emailsvc.intake.payload import NewEmail
from emailsvc.outbox import Accepted
from emailsvc.settings import config as configuration
from emailsvc.settings.config import Config
from tests.conftest import migrate
from tests.emails import row
from tests.factories import new_email, payload
from tests.servers import PostgreSQL, wait_for

ATTACHMENT = {"filename": "a.txt", "content_type": "text/plain", "content": "aGk="}


@dataclass
class Desk:
    """A reception whose first transaction is on its way until ``go_on``, so that whoever comes makes up a group."""

    engine: Engine
    config: Config
    rings: int = 0
    held: threading.Event = field(default_factory=threading.Event)
    goes_on: threading.Event = field(default_factory=threading.Event)
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(64))

    def __post_init__(self) -> None:
        self.reception = outbox.Reception(self.engine, self.config, self._wake)

    def _wake(self) -> None:
        self.rings += 1
        self.held.set()
        self.goes_on.wait(30)

    def post(self, email: NewEmail) -> Future[Accepted]:
        return self.pool.submit(self.reception.accept, email)

    def hold(self) -> None:
        self.post(new_email("first"))
        assert self.held.wait(10)

    def group(self, *emails: NewEmail) -> list[Future[Accepted]]:
        self.hold()
        posted = [self.post(email) for email in emails]
        waiting = self.reception._grouped._waiting
        wait_for(lambda: len(waiting) == len(emails), 10, "the group to wait")
        self.goes_on.set()
        return posted


@pytest.fixture
def desk(engine: Engine, config: Config) -> Iterator[Desk]:
    made = Desk(engine, config)
    yield made
    made.goes_on.set()
    made.pool.shutdown()


on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def commits(engine: Engine) -> list[object]:
    made: list[object] = []
    event.listen(engine, "commit", made.append)
    return made


def test_a_group_is_one_transaction_and_one_ring(desk: Desk) -> None:
    made = commits(desk.engine)
    answers = [one.result(10) for one in desk.group(*(new_email(f"m-{n}") for n in range(15)))]
    assert [(a.email_id, a.status) for a in answers] == [(f"m-{n}", "accepted") for n in range(15)]
    assert (len(made), desk.rings) == (2, 2)


def test_the_ring_comes_after_the_commit(engine: Engine, config: Config) -> None:
    """A worker that it wakes looks at once, and finds nothing else to wake it later."""
    seen: list[int] = []
    reception = outbox.Reception(engine, config, lambda: seen.append(reports.stats(engine).received))
    reception.accept(new_email("m-1"))
    reception.accept(new_email("m-2", attachments=[ATTACHMENT]))
    assert seen == [1, 2]


def test_duplicates_and_mismatches_in_a_group_are_judged_as_one_after_the_other(desk: Desk) -> None:
    outbox.accept(desk.engine, new_email("known"), desk.config)
    known, other = [new_email("known")] * 3, [new_email("known", subject="Other")] * 2
    new, changed = [new_email("new")] * 4, [new_email("new", subject="Other")]
    answers = [one.result(10) for one in desk.group(*known, *new, *other, *changed)]
    by_id = {email_id: Counter(a.status for a in answers if a.email_id == email_id) for email_id in ("known", "new")}
    assert by_id["known"] == {"duplicate": 3, "mismatch": 2}
    assert by_id["new"].total() == 5
    assert by_id["new"][outbox.Verdict.ACCEPTED] == 1
    assert sorted(a.duplicates for a in answers[:3]) == [1, 2, 3]
    assert (row(desk.engine, "known").duplicates, row(desk.engine, "known").mismatches) == (3, 2)
    assert row(desk.engine, "new").duplicates + row(desk.engine, "new").mismatches == 4
    stats = reports.stats(desk.engine)
    assert (stats.received, stats.duplicates + stats.mismatches) == (3, 9)
    assert stats.duplicates == row(desk.engine, "known").duplicates + row(desk.engine, "new").duplicates


def test_sixty_four_clients_at_once_with_exact_counts(engine: Engine, config: Config) -> None:
    reception = outbox.Reception(engine, config, lambda: None)
    start = threading.Barrier(64)

    def post(client: int) -> list[tuple[str, str]]:
        rng, done = random.Random(client), []
        start.wait(30)
        for number in range(12):
            shared = new_email(f"shared-{rng.randrange(10)}", subject=rng.choice(["Hello", "Hello", "Other"]))
            email = new_email(f"own-{client}-{number}") if number % 2 else shared
            done.append((email.email_id, str(reception.accept(email).status)))
        return done

    with ThreadPoolExecutor(64) as pool:
        answers = [answer for answers in pool.map(post, range(64)) for answer in answers]
    verdicts = Counter(verdict for _, verdict in answers)
    stored = {email_id for email_id, _ in answers}
    assert Counter(email_id for email_id, verdict in answers if verdict == "accepted") == dict.fromkeys(stored, 1)
    stats = reports.stats(engine)
    assert (stats.received, stats.duplicates, stats.mismatches) == (
        len(stored), verdicts["duplicate"], verdicts["mismatch"],
    )  # fmt: skip
    for number in range(10):
        found, told = row(engine, f"shared-{number}"), Counter(v for i, v in answers if i == f"shared-{number}")
        assert (found.duplicates, found.mismatches) == (told["duplicate"], told["mismatch"])
    assert reports.violations(engine, config) == []


@pytest.mark.parametrize(
    "fields", [{"attachments": [ATTACHMENT]}, {"body": "x" * 300_000}], ids=["attachment", "large"]
)
def test_attachments_and_large_ones_go_alone(desk: Desk, fields: dict[str, object]) -> None:
    """They neither wait for the transaction that is on its way nor hold up the next."""
    desk.hold()
    waiting = desk.post(new_email("small"))
    made = desk.post(new_email("m-1", **fields))
    wait_for(lambda: desk.rings == 2, 10, "its own transaction, beside the one that is on its way")
    assert not waiting.done()
    desk.goes_on.set()
    assert (made.result(10).status, waiting.result(10).status) == ("accepted", "accepted")


@pytest.fixture
def latin1(postgresql: PostgreSQL, make_app: Callable[[Config], Flask], tmp_path: Path) -> Iterator[Desk]:
    """On a database that cannot hold every word, as one that somebody else made years ago."""
    name = postgresql.create_database("template0", "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
    config = configuration.load({"DATABASE_URL": postgresql.url(name)}, tmp_path)
    engine: Engine = make_app(config).extensions["emailsvc"].engine
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(Switch).values(id=1, rolled_up_to=utcnow()))
    desk = Desk(engine, config)
    yield desk
    desk.pool.shutdown()
    engine.dispose()
    postgresql.drop_database(name)


def test_one_that_the_database_refuses_fails_no_other(latin1: Desk) -> None:
    good = [new_email(f"m-{n}", subject="Grüße") for n in range(6)]
    *answers, refused = latin1.group(*good, new_email("bad", subject="Привет"))
    assert [one.result(10).status for one in answers] == ["accepted"] * 6
    assert isinstance(refused.exception(10), DataError)
    assert reports.stats(latin1.engine).received == 7


@on_postgresql
def test_a_row_that_somebody_keeps_locked_holds_up_none_but_its_own(desk: Desk) -> None:
    """A group waits for it no longer than a tenth of a second; then each is tried by itself."""
    outbox.accept(desk.engine, new_email("locked"), desk.config)
    with desk.engine.connect() as other:
        other.exec_driver_sql("SELECT id FROM emails WHERE email_id = 'locked' FOR UPDATE")
        locked, *rest = desk.group(new_email("locked"), *(new_email(f"m-{n}") for n in range(5)))
        assert [one.result(5).status for one in rest] == ["accepted"] * 5
        assert desk.post(new_email("next")).result(5).status == "accepted"
        assert not locked.done()
        other.rollback()
    assert (locked.result(10).status, row(desk.engine, "locked").duplicates) == ("duplicate", 1)
    assert reports.stats(desk.engine).duplicates == 1


# The database goes away in the middle


@pytest.fixture
def own_config(own_postgresql: PostgreSQL, tmp_path: Path) -> Config:
    url = own_postgresql.url(own_postgresql.create_database())
    migrate(url, tmp_path / "own")
    return configuration.load({"DATABASE_URL": url}, tmp_path / "own")


def _are_accepted(answers: list[tuple[str, int]], since: int) -> bool:
    return sum(status == 202 for _, status in answers[since:]) > 100


def test_a_database_killed_in_the_middle_of_groups_keeps_every_202_and_repeats_are_clean(
    own_config: Config, own_postgresql: PostgreSQL, make_app: Callable[[Config], Flask]
) -> None:
    app = make_app(own_config)
    engine = app.extensions["emailsvc"].engine
    answers: list[tuple[str, int]] = []
    done = threading.Event()

    def post(client: int) -> None:
        web, number = app.test_client(), 0
        while not done.is_set():
            email_id = f"m-{client}-{number}"
            answers.append((email_id, web.post("/webhook/email", json=payload(email_id)).status_code))
            number += 1

    with ThreadPoolExecutor(16) as pool:
        clients = [pool.submit(post, client) for client in range(16)]
        try:
            for _ in range(3):
                told = len(answers)
                wait_for(partial(_are_accepted, answers, told), 30, "a hundred webhooks")
                own_postgresql.kill9()
                own_postgresql.start()
        finally:
            done.set()
        for client in clients:
            client.result(30)
    assert {status for _, status in answers} == {202, 503}
    accepted = {email_id for email_id, status in answers if status == 202}
    with engine.connect() as connection:
        stored = set(connection.exec_driver_sql("SELECT email_id FROM emails").scalars())
    assert accepted <= stored
    web = app.test_client()
    for email_id, status in answers[-200:]:
        again = web.post("/webhook/email", json=payload(email_id)).status_code
        assert again == (200 if email_id in stored else 202), (email_id, status)
    assert reports.violations(engine, own_config) == []


def test_nobody_waits_for_a_group_longer_than_its_own_request_may(desk: Desk) -> None:
    """Those who lead may have come later, and have more time."""
    desk.hold()

    def post() -> Accepted:
        with promptness.promptly(monotonic() - promptness.DATABASE_SECONDS + 0.2):
            return desk.reception.accept(new_email("late"))

    with pytest.raises(PoolTimeout):
        desk.pool.submit(post).result(10)


def test_while_the_database_hangs_every_webhook_is_answered_in_its_time(
    own_config: Config, own_postgresql: PostgreSQL, make_app: Callable[[Config], Flask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who leads, who follows, who waits for the next transaction, and who came later than all of them."""
    monkeypatch.setattr(promptness, "DATABASE_SECONDS", 2.5)
    app = make_app(own_config)
    assert app.test_client().post("/webhook/email", json=payload("before")).status_code == 202
    took: list[float] = []

    def post(number: int) -> int:
        threading.Event().wait(number * 0.05)  # over a second and a half
        began = monotonic()
        status = app.test_client().post("/webhook/email", json=payload(f"m-{number}")).status_code
        took.append(monotonic() - began)
        return status

    own_postgresql.freeze()
    try:
        with ThreadPoolExecutor(32) as pool:
            assert set(pool.map(post, range(32))) == {503}
    finally:
        own_postgresql.thaw()
    assert max(took) < 2.5 + 1.5
    wait_for(lambda: post(0) in (200, 202), 10, "webhooks to be accepted again")
