"""Real processes under load: every answer is right, every valid id is sent once, every counter adds up."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.factories import payload
from tests.servers import Redis, wait_for
from tests.smtpd import Smtpd
from tests.stack import SHORT, Process, Response, Stack, copies, smtp_url


@pytest.fixture(params=["procfile", "embedded"])
def service(request: pytest.FixtureRequest, sink: Smtpd, make_stack: Callable[..., Stack]) -> Stack:
    """Two web processes and two consumers on PostgreSQL and Redis; and what a laptop runs, on SQLite files."""
    if request.param == "embedded":
        stack = make_stack(SMTP_URL=smtp_url(sink), WEB_CONCURRENCY="2")
        stack.spawn("start", "flask start")
        stack.wait_ready()
        return stack
    database: str = request.getfixturevalue("database")
    redis_url: str = request.getfixturevalue("redis_url")
    urls = {"DATABASE_URL": database, "REDIS_URL": redis_url, "SMTP_URL": smtp_url(sink)}
    stack = make_stack(**urls, WEB_CONCURRENCY="2")
    stack.start(workers=2, release=False)
    return stack


def test_a_mixed_load_is_answered_counted_and_sent_once(service: Stack, sink: Smtpd) -> None:
    payloads, valid = mixed_load(1000, random.Random(1))
    replies = service.together(16, payloads, service.post)
    accepted: Counter[str] = Counter()
    repeats = 0
    for posted, reply in zip(payloads, replies, strict=True):
        if len(posted) < 4:
            assert reply.status == 400, (posted, reply)
            missing = {"email_id", "user", "subject", "body"} - set(posted)
            assert reply.json["field"] in missing, reply
        else:
            assert reply.status in (200, 202), (posted, reply)
            accepted[posted["email_id"]] += reply.status == 202
            repeats += reply.status == 200
    assert accepted == Counter(dict.fromkeys(valid, 1))
    stats = service.wait_settled(60)
    shown = {name: stats[name] for name in ("received", "duplicates", "mismatches", "sent", "failed", "cancelled")}
    expected = {"received": len(valid), "duplicates": repeats, "mismatches": 0, "sent": len(valid), "failed": 0}
    assert shown == expected | {"cancelled": 0}
    assert copies(sink) == Counter(dict.fromkeys(valid, 1))


def test_simultaneous_posts_of_one_id_make_one_row_and_one_mail(service: Stack, sink: Smtpd) -> None:
    clients, ids = 64, [f"race-{number}" for number in range(20)]
    barrier = threading.Barrier(clients, timeout=60)

    def post_all(_client: int) -> list[tuple[str, Response]]:
        replies = []
        for email_id in ids:
            barrier.wait()
            replies.append((email_id, service.post(payload(email_id))))
        return replies

    answers = [pair for pairs in service.together(clients, range(clients), post_all) for pair in pairs]
    assert Counter(reply.status for _, reply in answers) == {202: len(ids), 200: len(ids) * (clients - 1)}
    assert Counter(email_id for email_id, reply in answers if reply.status == 202) == Counter(dict.fromkeys(ids, 1))
    stats = service.wait_settled(60)
    assert (stats["received"], stats["duplicates"], stats["sent"]) == (20, 20 * 63, 20)
    assert copies(sink) == Counter(dict.fromkeys(ids, 1))


def test_a_redis_that_is_flushed_and_killed_loses_and_doubles_nothing(
    database: str, own_redis: Redis, sink: Smtpd, make_stack: Callable[..., Stack]
) -> None:
    stack = make_stack(DATABASE_URL=database, REDIS_URL=own_redis.url, SMTP_URL=smtp_url(sink))
    stack.start(workers=2, release=False)
    payloads, valid = mixed_load(1200, random.Random(2))
    answered: list[tuple[dict[str, Any], Response]] = []

    def post(payload: dict[str, Any]) -> None:
        answered.append((payload, stack.post(payload)))

    def trouble() -> None:
        wait_for(lambda: len(answered) > 300, 30, "300 answers")
        own_redis.flushall()
        wait_for(lambda: len(answered) > 500, 30, "500 answers")
        own_redis.kill9()
        wait_for(lambda: len(answered) > 900, 60, "900 answers without Redis")
        own_redis.start()

    troublemaker = threading.Thread(target=trouble)
    troublemaker.start()
    stack.together(8, payloads, post)
    troublemaker.join()
    assert len(answered) == len(payloads)
    accepted = Counter(payload["email_id"] for payload, reply in answered if reply.status == 202)
    assert accepted == Counter(dict.fromkeys(valid, 1)), "no duplicate answered as new"
    stats = stack.wait_settled(90)
    assert (stats["received"], stats["sent"], stats["failed"]) == (len(valid), len(valid), 0)
    assert copies(sink) == Counter(dict.fromkeys(valid, 1))


def test_a_hanging_redis_delays_no_answer_and_its_return_sends_the_mail(
    database: str, own_redis: Redis, sink: Smtpd, make_stack: Callable[..., Stack]
) -> None:
    stack = make_stack(DATABASE_URL=database, REDIS_URL=own_redis.url, SMTP_URL=smtp_url(sink))
    stack.start(workers=1, release=False)
    own_redis.freeze()
    try:
        for number in range(5):
            start = time.monotonic()
            assert stack.post(payload(f"while-hanging-{number}")).status == 202
            assert time.monotonic() - start < 2
    finally:
        own_redis.thaw()
    assert stack.wait_settled(90)["sent"] == 5
    assert copies(sink) == Counter({f"while-hanging-{number}": 1 for number in range(5)})


def test_the_counters_are_exact_after_kills_of_web_and_worker(
    database: str, redis_url: str, sink: Smtpd, make_stack: Callable[..., Stack]
) -> None:
    urls = {"DATABASE_URL": database, "REDIS_URL": redis_url, "SMTP_URL": smtp_url(sink)}
    stack = make_stack(**urls, WEB_CONCURRENCY="2", **SHORT)
    web, workers = stack.start(workers=2, release=False)
    payloads, valid = mixed_load(800, random.Random(3))
    done = threading.Event()
    killer = threading.Thread(target=_kill_at_random, args=(stack, web, workers, done))
    killer.start()
    try:
        answers = stack.together(8, payloads, stack.post_until_answered)
    finally:
        done.set()
        killer.join()
    tally: Counter[int] = Counter(reply.status for reply, _ in answers)
    tries = sum(n for payload, (_, n) in zip(payloads, answers, strict=True) if len(payload) == 4)
    stats = stack.wait_settled(60)
    counted = _count_rows(database)
    assert {name: stats[name] for name in counted} == counted
    assert stats["received"] == len(valid)
    # A try whose answer was lost by the kill may or may not have been counted; every answered one was.
    assert tally[200] <= stats["duplicates"] <= tries - len(valid)
    held = {letter["email_id"] for letter in stack.dead_letters()}
    taken = copies(sink)
    assert stats["failed"] == len(held)
    assert set(taken) | held == valid
    assert max(taken.values()) == 1


def _kill_at_random(stack: Stack, web: Process, workers: list[Process], done: threading.Event) -> None:
    rng = random.Random(4)
    for round_number in range(8):
        if done.wait(rng.uniform(0.1, 0.5)):
            return
        if round_number % 2:
            victim = workers.pop(0)
            victim.kill9()
            workers.append(stack.spawn("worker"))
        else:
            web.kill9_child(rng)


def _count_rows(url: str) -> dict[str, int]:
    """The statistics the slow way."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT status, count(*) FROM emails GROUP BY status").fetchall()
        repeats = connection.execute("SELECT sum(duplicates), sum(mismatches) FROM emails").fetchone()
        letters = connection.execute("SELECT count(*) FROM dead_letters WHERE resolved_at IS NULL").fetchone()
        attempts = connection.execute("SELECT count(*) FROM attempts").fetchone()
    assert repeats
    assert letters
    assert attempts
    by_status = dict(rows)
    statuses = {name: by_status.get(name, 0) for name in ("pending", "sending", "sent", "failed", "cancelled")}
    totals = {"received": sum(by_status.values()), "duplicates": repeats[0], "mismatches": repeats[1]}
    return statuses | totals | {"dead_letters": letters[0], "failed_attempts": attempts[0]}


def mixed_load(count: int, rng: random.Random) -> tuple[list[dict[str, Any]], set[str]]:
    """Webhooks of which 20 % are incomplete and 70 % repeat a few ids; and the distinct valid ids."""
    few = [f"repeated-{number}" for number in range(20)]
    payloads = [payload(rng.choice(few)) for _ in range(count * 7 // 10)]
    payloads += [incomplete(payload(f"incomplete-{n}"), rng) for n in range(count * 2 // 10)]
    payloads += [payload(f"single-{number}") for number in range(count - len(payloads))]
    rng.shuffle(payloads)
    return payloads, {p["email_id"] for p in payloads if len(p) == 4}


def incomplete(whole: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    missing = rng.choice(sorted(whole))
    return {name: value for name, value in whole.items() if name != missing}
