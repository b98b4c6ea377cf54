"""The whole way with a mail server that follows a script: one deploy, one e-mail for each line of the script."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from tests.conftest import started
from tests.factories import payload
from tests.servers import PostgreSQL, Redis, wait_for
from tests.smtpd import DROP, Drip, Plan, Smtpd
from tests.stack import Stack, copies, smtp_url

LATER = "451 4.7.1 greylisted, come again"
SCRIPT = {
    "later": [Plan("rcpt", LATER), Plan("dot", LATER)],
    "never": [Plan("rcpt", LATER, forever=True)],
    "refused": [Plan("rcpt", "550 5.1.1 no such user")],
    "lost-reply": [Plan("dot", DROP, taken=True)],
    "dropped-early": [Plan("rcpt", DROP)],
    "other-yes": [Plan("dot", "251 2.1.5 forwarding", taken=True)],
    "dripping": [Plan("rcpt", Drip("250 2.1.5 ok but slow", 1.0))],
    "discarded": [Plan("rcpt", "550 5.1.1 no such user")],
}


TIMES = {
    "SMTP_TIMEOUT_SECONDS": "3",
    "SMTP_REPLY_TIMEOUT_SECONDS": "3",
    "LEASE_SECONDS": "10",
    "SWEEP_SECONDS": "5",
    "WEB_CONCURRENCY": "1",
}
WATCHED = ("later", "never", "dropped-early")
"""Posted when their tests begin, which look at each attempt before the next one may be due."""


@dataclass
class Story:
    stack: Stack
    server: Smtpd
    url: str

    def row(self, email_id: str) -> dict[str, Any]:
        (row,) = self.rows("SELECT * FROM emails WHERE email_id = %s", email_id)
        return row

    def attempts(self, email_id: str) -> list[dict[str, Any]]:
        query = "SELECT a.* FROM attempts a JOIN emails e ON e.id = a.email WHERE email_id = %s ORDER BY a.id"
        return self.rows(query, email_id)

    def rows(self, query: str, *values: str) -> list[dict[str, Any]]:
        with psycopg.connect(self.url, row_factory=psycopg.rows.dict_row) as connection:
            return connection.execute(query.encode(), values).fetchall()

    def letter(self, email_id: str) -> dict[str, Any]:
        (letter,) = [letter for letter in self.stack.dead_letters() if letter["email_id"] == email_id]
        return letter

    def hurry(self, email_id: str, attempts: int) -> float:
        """After so many attempts: the stored backoff in seconds; and the row is due at once instead."""
        wait_for(lambda: self.row(email_id)["attempts"] == attempts, 30, f"attempt {attempts} of {email_id}")
        row, (*_, last) = self.row(email_id), self.attempts(email_id)
        with psycopg.connect(self.url) as connection:
            connection.execute("UPDATE emails SET next_attempt_at = now() WHERE id = %s", (row["id"],))
        assert self.stack.post(payload(email_id)).status == 200  # a duplicate of what is due asks for a drain
        return float((row["next_attempt_at"] - last["at"]).total_seconds())

    def become(self, email_id: str, status: str, seconds: float = 30) -> dict[str, Any]:
        wait_for(lambda: self.row(email_id)["status"] == status, seconds, f"{email_id} to be {status}")
        return self.row(email_id)


@pytest.fixture(scope="module")
def story(
    postgresql: PostgreSQL, _postgresql_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    database = postgresql.create_database(_postgresql_template)
    with ExitStack() as close:
        close.callback(postgresql.drop_database, database)
        redis = started(Redis)
        close.callback(redis.close)
        server = close.enter_context(Smtpd(quit="421 4.3.2 going away"))
        for name, plans in SCRIPT.items():
            server.script(f"{name}@example.com", *plans)
        urls = {"DATABASE_URL": postgresql.url(database), "REDIS_URL": redis.url, "SMTP_URL": smtp_url(server)}
        stack = close.enter_context(Stack(tmp_path_factory.mktemp("story"), **urls, **TIMES))
        stack.start(workers=1, release=False)
        for name in SCRIPT:
            if name not in WATCHED:
                assert stack.post(payload(name)).status == 202
        yield Story(stack, server, postgresql.url(database))


def test_451_twice_and_then_250_is_sent_on_the_third_attempt_after_5_and_10_seconds(story: Story) -> None:
    assert story.stack.post(payload("later")).status == 202
    for attempt, delay in ((1, 5), (2, 10)):
        assert delay * 0.8 - 0.1 <= story.hurry("later", attempt) <= delay * 1.2 + 0.1
    story.become("later", "sent")
    assert [(a["outcome"], a["code"]) for a in story.attempts("later")] == [("deferred", 451)] * 2
    assert copies(story.server)["later"] == 1


def test_550_is_one_attempt_and_rejected(story: Story) -> None:
    story.become("refused", "failed")
    letter = story.letter("refused")
    assert (letter["reason"], letter["attempts"]) == ("rejected", 1)
    assert "550" in letter["error"]
    assert "no such user" in letter["error"]


def test_a_connection_dropped_after_the_dot_is_uncertain_and_one_copy(story: Story) -> None:
    story.become("lost-reply", "failed")
    assert story.letter("lost-reply")["reason"] == "uncertain"
    assert copies(story.server)["lost-reply"] == 1


def test_a_connection_dropped_before_the_dot_is_retried(story: Story) -> None:
    assert story.stack.post(payload("dropped-early")).status == 202
    story.hurry("dropped-early", 1)
    story.become("dropped-early", "sent", 40)
    assert {attempt["outcome"] for attempt in story.attempts("dropped-early")} == {"deferred"}
    assert copies(story.server)["dropped-early"] == 1


def test_251_to_the_dot_is_sent(story: Story) -> None:
    story.become("other-yes", "sent")
    assert copies(story.server)["other-yes"] == 1


def test_a_dripping_server_is_cut_off_at_the_deadline(story: Story) -> None:
    story.become("dripping", "sent", 40)
    (first, *_) = story.attempts("dripping")
    assert first["outcome"] == "deferred"
    assert 2.5 < (first["at"] - first["started_at"]).total_seconds() < 15, "the reply takes 25 s"
    assert copies(story.server)["dripping"] == 1


def test_451_for_ever_is_four_attempts_and_exhausted(story: Story) -> None:
    assert story.stack.post(payload("never")).status == 202
    for attempt in (1, 2, 3):
        story.hurry("never", attempt)
    story.become("never", "failed")
    letter = story.letter("never")
    assert (letter["reason"], letter["attempts"]) == ("exhausted", 4)
    assert len(story.attempts("never")) == 4
    assert copies(story.server)["never"] == 0


def test_a_replay_keeps_the_message_id_and_a_second_one_sends_nothing(story: Story) -> None:
    story.become("lost-reply", "failed")
    path = f"/stats/dead-letters/{story.letter('lost-reply')['id']}/replay"
    answers = [story.stack.request("POST", path) for _ in range(2)]
    assert [(answer.status, answer.json["resolution"]) for answer in answers] == [(200, "replayed")] * 2
    assert answers[0].json == answers[1].json
    story.become("lost-reply", "sent")
    first, second = story.server.to("lost-reply@example.com")
    assert first.message_id == second.message_id


def test_a_second_discard_answers_the_same_and_changes_nothing(story: Story) -> None:
    story.become("discarded", "failed")
    path = f"/stats/dead-letters/{story.letter('discarded')['id']}"
    answers = [story.stack.request("DELETE", path) for _ in range(2)]
    assert [(answer.status, answer.json["resolution"]) for answer in answers] == [(200, "discarded")] * 2
    assert answers[0].json == answers[1].json
    assert "discarded" not in [letter["email_id"] for letter in story.stack.dead_letters()]
    assert copies(story.server)["discarded"] == 0


def test_421_to_quit_changes_nothing_about_a_mail_that_was_accepted(story: Story) -> None:
    for email_id in ("other-yes", "dripping"):
        story.become(email_id, "sent", 40)
    before = copies(story.server)
    (worker,) = [process for process in story.stack.processes if process.name == "worker"]
    worker.term()
    assert worker.wait(25) == 0
    assert story.server.seen("QUIT") >= 1
    assert {story.row(name)["status"] for name in ("other-yes", "dripping")} == {"sent"}
    assert copies(story.server) == before


@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelining", "step by step"])
def test_a_server_that_ends_idle_connections_with_an_error_costs_no_attempt(
    make_stack: Callable[..., Stack], sink: Smtpd, pipelining: bool
) -> None:
    """``451 4.4.2`` and ``554 5.4.2`` in turn, said around the moment at which the next e-mail comes."""
    sink.behaviour.pipelining, sink.behaviour.idle_seconds = pipelining, 0.1
    stack = make_stack(SMTP_URL=smtp_url(sink), WORKER_THREADS="1", RETRY_DELAY_SECONDS="1")
    stack.start(workers=1, release=False)
    gaps = random.Random(5)
    for number in range(20):
        assert stack.post(payload(f"m-{number}")).status == 202
        sink.wait(lambda number=number: sink.taken > number, 30)  # type: ignore[misc]
        time.sleep(gaps.uniform(0.05, 0.2))
    stats = stack.wait_settled()
    assert (stats["sent"], stats["failed_attempts"], stats["dead_letters"]) == (20, 0, 0)
    assert sink.connections > 5
    assert set(copies(sink).values()) == {1}
