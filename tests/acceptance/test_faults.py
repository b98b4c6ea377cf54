"""Real processes under faults that take a whole deploy to see: frozen workers, suspended accounts, shutdowns."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.benchmarks import redis_away
from tests.factories import payload
from tests.servers import PostgreSQL, Redis, free_port, wait_for
from tests.smtpd import HANG, Drip, Plan, Smtpd
from tests.stack import SHORT, Stack, copies, smtp_url

CUT = 15.0


@pytest.fixture
def deploy(database: str, redis_url: str, sink: Smtpd, make_stack: Callable[..., Stack]) -> Callable[..., Stack]:
    def make(**environ: str) -> Stack:
        urls = {"DATABASE_URL": database, "REDIS_URL": redis_url, "SMTP_URL": smtp_url(sink)}
        return make_stack(**urls | environ)

    return make


def hurry_shutdown(stack: Stack) -> None:
    """The worker takes CUT seconds less of each time that it gives itself to stop."""
    cut = f"queue.SHUTDOWN_SECONDS -= {CUT}; tasks.GRACE_SECONDS -= {CUT}"
    lines = ["from emailsvc.wakeups import queue, tasks", cut, "from emailsvc.worker import huey"]
    (stack.folder / "short.py").write_text("\n".join(lines))
    stack.commands["worker"] = "huey_consumer short.huey"


def rows(url: str, query: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def test_a_worker_frozen_past_its_lease_and_continued_changes_nothing(
    deploy: Callable[..., Stack], database: str, sink: Smtpd
) -> None:
    """Frozen after its dot: the server has the mail, the sweep says uncertain, and the late record is not believed."""
    sink.behaviour.mail_delay = 1.0
    stack = deploy(WORKER_THREADS="1", **SHORT)
    _, (worker,) = stack.start(workers=1, release=False)
    stack.post_many([f"m-{n}" for n in range(6)])
    wait_for(lambda: len(copies(sink)) >= 2, 20, "the worker to be in the middle of its batch")
    os.kill(worker.pid, signal.SIGSTOP)
    sink.behaviour.mail_delay = 0
    other = stack.spawn("worker")
    wait_for(lambda: stack.stats()["failed"] == 1, 30, "the sweep to decide")
    (letter,) = stack.dead_letters()
    os.kill(worker.pid, signal.SIGCONT)
    stats = stack.wait_settled(30)
    wait_for(lambda: "stale_outcome" in worker.output() or worker.output().count(" sent ") >= 2, 20, "it to go on")
    assert (letter["reason"], stats["failed"], stats["sent"]) == ("uncertain", 1, 5)
    assert max(copies(sink).values()) == 1
    assert stack.dead_letters() == [letter]
    assert rows(database, f"SELECT status FROM emails WHERE email_id = '{letter['email_id']}'") == [("failed",)]
    assert other.running


def nothing_in_hand(stack: Stack) -> dict[str, Any]:
    """The statistics of such a moment; in the next one a probe may begin."""
    stats = stack.stats()
    return stats if stats["sending"] == 0 else {}


def test_an_account_that_refuses_everybody_costs_at_most_twenty_dead_letters(
    deploy: Callable[..., Stack], sink: Smtpd
) -> None:
    sink.behaviour.refuse = lambda _recipient: "550 5.7.1 account suspended"
    stack = deploy()
    stack.start(workers=2, release=False)
    ids = [f"m-{n}" for n in range(120)]
    stack.together(8, ids, lambda i: stack.post(payload(i, user=f"{i}@domain{int(i[2:]) % 7}.example")))
    wait_for(lambda: stack.stats()["delivery"]["state"] == "outage", 30, "the outage to be noticed")
    stats = wait_for(lambda: nothing_in_hand(stack), 30, "every batch to be given back")
    assert "account suspended" in stats["delivery"]["reason"]
    assert 0 < stats["dead_letters"] <= 20
    assert stats["pending"] + stats["failed"] == 120
    sink.behaviour.refuse = None
    after = stack.wait_settled(60)
    assert after["sent"] == 120 - after["failed"]
    assert after["dead_letters"] <= 20


def test_a_server_that_is_away_burns_no_attempt_and_its_return_is_noticed(
    deploy: Callable[..., Stack], database: str
) -> None:
    port = free_port()
    stack = deploy(SMTP_URL=f"smtp://127.0.0.1:{port}")
    stack.start(workers=2, release=False)
    stack.post_many([f"m-{n}" for n in range(60)])
    wait_for(lambda: stack.stats()["delivery"]["state"] == "outage", 20, "the outage to be noticed")
    assert stack.request("POST", "/delivery/pause").json["state"] == "paused"
    assert stack.stats()["failed_attempts"] == 0
    with Smtpd(port=port) as server:
        with psycopg.connect(database) as connection:
            connection.execute("UPDATE switch SET next_probe_at = now()")
        time.sleep(3)  # in which each worker looks: while it is paused nothing may come, not even a probe
        assert server.connections == 0
        assert stack.request("POST", "/delivery/resume").json["state"] in ("outage", "running")
        stats = stack.wait_settled(60)
        assert (stats["sent"], stats["failed_attempts"], stats["dead_letters"]) == (60, 0, 0)
        assert stats["delivery"]["state"] == "running"
        assert max(copies(server).values()) == 1


@pytest.mark.parametrize(
    ("at", "outcome"), [("rcpt", "pending"), ("dot", "failed")], ids=["before the dot", "after the dot"]
)
def test_a_shutdown_ends_in_time_whatever_the_mail_server_does(
    deploy: Callable[..., Stack], database: str, sink: Smtpd, at: str, outcome: str
) -> None:
    """Before the dot the conversation is cut, no attempt burned; after it the reply is waited for, then uncertain."""
    sink.script("m-0@example.com", Plan(at, HANG, taken=at == "dot", forever=True))
    times = {"SMTP_TIMEOUT_SECONDS": "60", "SMTP_REPLY_TIMEOUT_SECONDS": "60", "LEASE_SECONDS": "130"}
    stack = deploy(WORKER_THREADS="1", **times)
    hurry_shutdown(stack)
    _, (worker,) = stack.start(workers=1, release=False)
    stack.post_many(["m-0", "m-1", "m-2"])
    wait_for(lambda: sink.conversations == 1 and stack.stats()["sending"] >= 1, 20, "the conversation to hang")
    wait_for(lambda: sink.seen("RCPT") >= 1, 20, "the conversation to be at its recipient")
    began = time.monotonic()
    worker.term(times=3)
    code = worker.wait(25)
    assert (code, time.monotonic() - began < 25 - CUT) == (0, True)
    left = rows(database, "SELECT status, attempts FROM emails WHERE email_id = 'm-0'")
    assert left == [(outcome, 0 if at == "rcpt" else 1)]
    assert rows(database, "SELECT count(*) FROM emails WHERE status = 'sending'") == [(0,)]
    reasons = rows(database, "SELECT reason FROM dead_letters")
    assert reasons == ([] if at == "rcpt" else [("uncertain",)])


def test_a_restart_under_load_with_a_server_that_answers_leaves_nothing_uncertain(
    deploy: Callable[..., Stack], sink: Smtpd
) -> None:
    sink.behaviour.mail_delay = 0.3
    stack = deploy()
    _, workers = stack.start(workers=1, release=False)
    stack.post_many([f"m-{n}" for n in range(80)])
    wait_for(lambda: len(copies(sink)) >= 4, 20, "the worker to be busy")
    worker = workers[0]
    for _ in range(3):
        worker.term(times=2)
        assert worker.wait(25) == 0
        assert stack.stats()["sending"] == 0
        worker = stack.spawn("worker")
        before = len(copies(sink))
        wait_for(lambda before=before: len(copies(sink)) > before or len(copies(sink)) == 80, 30, "it to go on")  # type: ignore[misc]
    sink.behaviour.mail_delay = 0
    stats = stack.wait_settled(60)
    assert (stats["sent"], stats["failed"], stats["failed_attempts"]) == (80, 0, 0)
    assert max(copies(sink).values()) == 1


def test_scheduled_mail_goes_out_within_two_seconds_of_its_time(deploy: Callable[..., Stack], sink: Smtpd) -> None:
    stack = deploy(SWEEP_SECONDS="60")
    stack.start(workers=1, release=False)
    due = time.time() + 4
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(due))
    stack.post(payload("later", send_at=moment))
    sink.wait(lambda: bool(sink.to("later@example.com")), 20)
    assert -1.0 <= sink.to("later@example.com")[0].at - due <= 3.0  # seconds are cut off when the moment is written


def test_a_dripping_server_holds_up_only_its_own_thread(deploy: Callable[..., Stack], sink: Smtpd) -> None:
    sink.script("slow@example.com", Plan("rcpt", Drip("250 2.1.5 ok but slow", 1.0), forever=True))
    stack = deploy(WORKER_THREADS="2")
    stack.start(workers=1, release=False)
    stack.post(payload("slow"))
    wait_for(lambda: stack.stats()["sending"] == 1, 20, "the slow one to be in hand")
    stack.post(payload("quick"))
    sink.wait(lambda: bool(sink.to("quick@example.com")), 10)
    assert stack.get("/emails/slow").json["state"] in ("sending", "pending")


@pytest.mark.parametrize("trouble", ["refused", "hanging", "full"])
def test_mail_and_retries_go_out_in_time_whatever_becomes_of_redis(
    trouble: str, database: str, own_redis: Redis
) -> None:
    late = redis_away.run(database, own_redis, trouble, seconds=6, rate=10, release=False)
    assert len(late["first attempts"]) == 40
    assert len(late["retries"]) == 20
    assert max(late["first attempts"]) < 3
    assert max(late["retries"]) < 2


@pytest.mark.parametrize("frozen", [True, False])
def test_a_worker_ends_in_time_and_without_a_traceback_when_its_database_is_away(
    frozen: bool,
    own_postgresql: PostgreSQL,
    own_database: str,
    redis_url: str,
    sink: Smtpd,
    make_stack: Callable[..., Stack],
) -> None:
    stack = make_stack(DATABASE_URL=own_database, REDIS_URL=redis_url, SMTP_URL=smtp_url(sink))
    hurry_shutdown(stack)
    sink.behaviour.mail_delay = 0.2
    _, (worker,) = stack.start(workers=1, release=False)
    stack.post_many([f"m-{n}" for n in range(80)])
    wait_for(lambda: len(copies(sink)) > 8, 20, "four batches in hand")
    if frozen:
        own_postgresql.freeze()
    else:
        own_postgresql.kill9()
    wait_for(lambda: "database_away" in worker.output() or frozen, 20, "it to be noticed")
    worker.term()
    began = time.monotonic()
    worker.wait(40)
    took = time.monotonic() - began
    if frozen:
        own_postgresql.thaw()
    assert took < 25 - CUT
    assert "Traceback" not in worker.output()
    assert "Unhandled" not in worker.output()


def test_a_webhook_is_answered_within_9_s_of_its_arrival_however_many_wait(
    own_postgresql: PostgreSQL, own_database: str, make_stack: Callable[..., Stack]
) -> None:
    """More of them than threads, and many more than connections; health checks wait among them."""
    stack = make_stack(DATABASE_URL=own_database)
    stack.spawn("web")
    stack.wait_ready(live_worker=False)

    def ask(number: int) -> tuple[int, bool, float]:
        began = time.monotonic()
        reply = stack.get("/readyz") if number % 3 == 2 else stack.post(payload(f"m-{number}"))
        return reply.status, "retry-after" in reply.headers, time.monotonic() - began

    assert stack.post(payload("before")).status == 202
    stack.hang_up()
    own_postgresql.freeze()
    try:
        answers = stack.together(60, range(60), ask)
    finally:
        own_postgresql.thaw()
    assert {(status, retry_after) for status, retry_after, _ in answers} == {(503, True)}
    assert max(seconds for _, _, seconds in answers) < 9.0
    assert stack.post(payload("m-0")).status in (200, 202)


def test_a_full_volume_is_named_and_work_goes_on_when_there_is_room_again(
    volume: Path, sink: Smtpd, make_stack: Callable[..., Stack]
) -> None:
    sink.behaviour.mail_delay = 0.1
    stack = make_stack(DATABASE_URL=f"sqlite:///{volume}/emailsvc.db", SMTP_URL=smtp_url(sink))
    stack.start(workers=1, release=False)
    ids = [f"mail-{number}" for number in range(60)]
    for email_id in ids:
        assert stack.post(payload(email_id)).status == 202
    wait_for(lambda: len(copies(sink)) > 5, 20, "some mail to be sent")
    with (volume / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))
    wait_for(lambda: stack.post(payload("large", body="x" * 100_000)).status == 503, 20, "a webhook to be refused")
    ready = stack.get("/readyz")
    assert ready.status == 503
    assert any("disk of the database is full" in problem for problem in ready.json["problems"])
    check = stack.run("flask check", check=False)
    assert check.returncode == 1
    assert "disk is full" in check.stdout or "disk of the database is full" in check.stdout
    (volume / "filler").unlink()
    assert stack.post_until_answered(payload("large", body="x" * 100_000))[0].status == 202
    assert stack.wait_settled(60)["sent"] == len(ids) + 1
    assert max(copies(sink).values()) == 1
    wait_for(lambda: stack.get("/readyz").status == 200, 20, "the service to be ready")


def test_a_replay_at_a_rate_survives_a_killed_worker_and_a_restart_and_sends_each_once(
    deploy: Callable[..., Stack], sink: Smtpd
) -> None:
    sink.behaviour.refuse = lambda _recipient: "552 5.2.2 mailbox full"
    stack = deploy(WORKER_THREADS="1", **SHORT)
    _, (killed, other) = stack.start(workers=2, release=False)
    letters = [payload(f"m-{n}", user=f"m-{n}@example.com") for n in range(200)]
    assert stack.post({"emails": letters}, "/webhook/email/batch").status == 200
    wait_for(lambda: stack.stats()["dead_letters"] == 200, 30, "the refusals")
    sink.behaviour.refuse = lambda _recipient: None
    action = stack.post({"error": "MAILBOX full", "rate": 50}, "/stats/dead-letters/replay").json
    assert (action["total"], action["state"]) == (200, "running")
    moved = lambda: stack.get(f"/actions/{action['id']}").json["done"]  # noqa: E731
    wait_for(lambda: moved() >= 20, 20, "the action to begin")
    killed.kill9()
    wait_for(lambda: moved() >= 150, 20, "the other worker to go on")
    other.term()
    other.wait(40)
    stack.spawn("worker")
    wait_for(lambda: stack.get(f"/actions/{action['id']}").json["state"] == "done", 30, "the new worker to end it")
    stats = stack.wait_settled(60)
    assert moved() == 200
    assert stats["sent"] + stats["dead_letters"] == 200
    assert stats["dead_letters"] <= 1, "the one in the killed worker's hands"
    assert max(copies(sink).values()) == 1
