"""The queue: messages that carry nothing, wake-ups that hold nobody up, workers that look by themselves."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from huey.exceptions import CancelExecution

from emailsvc.settings import config
from emailsvc.wakeups import lookout
from emailsvc.wakeups.lookout import Lookout
from emailsvc.wakeups.queue import ENOUGH_WAITING, SILENT_SECONDS, SOCKET_SECONDS, GracefulConsumer, build, redis_client
from tests.servers import Redis, wait_for

BOUNDED_SECONDS = 2.0


class Bench:
    """A queue with one task that counts its runs, a table to look at, and its consumer if one is started."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.queue = build(config.load(environ, folder))
        self.runs: list[float] = []
        self.drain = self.queue.drain = self.queue.task(name="drain", retries=8, retry_delay=1, retry_backoff=2)(
            self._run
        )
        self.due: float | None = None  # what a look at the table tells
        self.looks: list[float] = []
        self.queue.lookout = Lookout(self._look, None if environ else lambda: self.due is not None)
        self.consumer: GracefulConsumer | None = None

    def _run(self) -> None:
        self.runs.append(time.monotonic())
        self.due = None

    def _look(self) -> float | None:
        self.looks.append(time.monotonic())
        return self.due

    @property
    def waiting(self) -> int:
        return int(self.queue.pending_count())

    def push(self, raw: bytes) -> None:
        self.queue.storage.enqueue(raw)

    def start(self) -> GracefulConsumer:
        self.consumer = self.queue.create_consumer()
        self.consumer.start()
        return self.consumer

    def wait_for_runs(self, count: int, seconds: float = 15) -> None:
        wait_for(lambda: len(self.runs) >= count, seconds, lambda: f"{count} runs, and there were {len(self.runs)}")


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """A consumer takes over the signals of its process, which are put back here."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    chatty = logging.getLogger("huey")
    level, loud = chatty.level, chatty.handlers[:]
    made: list[Bench] = []

    def make(**environ: str) -> Bench:
        made.append(Bench(tmp_path, **environ))
        return made[-1]

    yield make
    for bench in made:
        if bench.consumer is not None:
            bench.consumer.stop(graceful=True)
        bench.queue.storage.close()
    chatty.setLevel(level)
    chatty.handlers[:] = loud
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(params=["redis", "sqlite"])
def bench(request: pytest.FixtureRequest, make_bench: Callable[..., Bench]) -> Bench:
    if request.param == "sqlite":
        return make_bench()
    return make_bench(REDIS_URL=request.getfixturevalue("redis_url"))


@pytest.fixture
def own(make_bench: Callable[..., Bench], own_redis: Redis) -> Bench:
    return make_bench(REDIS_URL=own_redis.url)


# Messages


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def forgeries(bench: Bench, folder: Path) -> list[bytes]:
    drain = json.loads(bench.queue.serialize_task(bench.drain.s()))[1]
    bomb = pickle.dumps(Bomb(folder / "exploded"))
    return [
        bomb,
        b"",
        b"\xff\xfe",
        b"{}",
        b"[]",
        b"null",
        json.dumps(["id", "no_such_task", None, 0, 0, 0]).encode(),
        json.dumps(["id", drain, "yesterday", 0, 0, 0]).encode(),
        json.dumps(["id", drain, None, "many", 0, 0]).encode(),
        json.dumps(["id", drain, None, 0, 0, 0, "surplus"]).encode(),
        b"[" * 100_000,
    ]


def test_a_message_says_which_task_and_nothing_else(bench: Bench) -> None:
    assert json.loads(bench.queue.serialize_task(bench.drain.s()))[2:] == [None, 8, 1, 2]
    assert bench.queue.serialize_task(bench.drain.s()).count(b"drain") == 1


def test_the_tasks_keep_the_names_under_which_other_releases_know_them(app: Flask) -> None:
    """Old and new processes share a queue during a deploy; a name that one of them does not know is a wake-up lost."""
    huey = app.extensions["huey"]
    names = {json.loads(huey.serialize_task(task))[1] for task in (huey.drain.s(), *huey._registry.periodic_tasks)}
    assert names == {"emailsvc.tasks.drain", "emailsvc.tasks.sweep"}


def test_messages_that_nobody_can_read_hold_up_no_mail(own: Bench, caplog: pytest.LogCaptureFixture) -> None:
    own.start()
    for count in range(1, 4):
        for _ in range(20):
            own.push(json.dumps(["id", "emailsvc.of.tomorrow.drain", None, 0, 0, 0]).encode())
        began = time.monotonic()
        own.due = 0.0
        own.wait_for_runs(count)
        assert own.runs[count - 1] - began < 3
    assert "message_unreadable" in caplog.messages
    assert not [record for record in caplog.records if record.exc_info]


def test_a_message_survives_its_journey(bench: Bench) -> None:
    task = bench.drain.s()
    task.eta = datetime(2026, 5, 4, 3, 2, 1)
    back = bench.queue.deserialize_task(bench.queue.serialize_task(task))
    assert (back.id, back.eta, back.retries, back.retry_delay, back.retry_backoff) == (task.id, task.eta, 8, 1, 2)
    assert (back.args, back.kwargs) == ((), {})


@pytest.mark.parametrize(("args", "kwargs"), [((1,), {}), ((), {"email_id": "x"})])
def test_a_task_with_arguments_is_refused(bench: Bench, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="carry nothing"):
        bench.drain(*args, **kwargs)
    assert bench.waiting == 0


def test_forged_bytes_are_never_run_as_code(bench: Bench, tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "proof")))
    assert (tmp_path / "proof").exists()
    for raw in forgeries(bench, tmp_path):
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it is, Huey logs it and goes on
            bench.queue.deserialize_task(raw)
    assert not (tmp_path / "exploded").exists()


def test_forged_messages_are_passed_over_and_the_next_one_is_processed(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for raw in forgeries(bench, tmp_path):
        bench.push(raw)
    bench.queue.wake()
    bench.start()
    bench.wait_for_runs(1)
    wait_for(lambda: bench.waiting == 0, 10, "the queue to be empty")
    assert len(bench.runs) == 1
    assert not (tmp_path / "exploded").exists()


def test_the_queue_keeps_no_results(bench: Bench) -> None:
    bench.queue.wake()
    bench.start()
    bench.wait_for_runs(1)
    assert bench.queue.result_count() == 0


# Wake-ups


def test_a_wake_up_enqueues_one_task(bench: Bench) -> None:
    bench.queue.wake()
    assert bench.waiting == 1


def test_the_queue_stays_short_however_often_somebody_rings(bench: Bench) -> None:
    for _ in range(5 * ENOUGH_WAITING):
        bench.queue.wake()
    assert bench.waiting == ENOUGH_WAITING


def ring(bench: Bench) -> float:
    """How long it took."""
    began = time.monotonic()
    bench.queue.wake()
    return time.monotonic() - began


def test_a_redis_that_is_away_holds_nobody_up_and_is_left_alone_for_five_seconds(
    own: Bench, own_redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.kill9()
    assert ring(own) < BOUNDED_SECONDS
    failed = time.monotonic()
    own_redis.start()
    own.queue.wake()
    assert own_redis.client().llen("huey.redis.emailsvc") == 0
    wait_for(lambda: own.queue.wake() or own.waiting, SILENT_SECONDS + 3, "wake-ups to be tried again")
    assert time.monotonic() - failed > SILENT_SECONDS - 0.5
    assert caplog.messages.count("queue_unavailable") == 1


def test_a_hanging_redis_holds_nobody_up(own: Bench, own_redis: Redis) -> None:
    assert ring(own) < BOUNDED_SECONDS
    own_redis.freeze()
    first, second = ring(own), ring(own)
    own_redis.thaw()
    assert first < BOUNDED_SECONDS
    assert second < 0.5


def test_who_asks_for_a_ring_soon_does_not_wait_for_redis(own: Bench, own_redis: Redis) -> None:
    own_redis.freeze()
    began = time.monotonic()
    own.queue.wake_soon()
    took = time.monotonic() - began
    own_redis.thaw()
    assert took < SOCKET_SECONDS / 2
    wait_for(lambda: own.queue.wake_soon() or own.waiting, SILENT_SECONDS + 5, "a ring")


def test_a_redis_that_never_answered_holds_nobody_up(own: Bench, own_redis: Redis) -> None:
    own_redis.freeze()  # connections are still taken, by the kernel
    took = ring(own)
    own_redis.thaw()
    assert took < BOUNDED_SECONDS


def test_a_locked_queue_file_holds_nobody_up(make_bench: Callable[..., Bench], tmp_path: Path) -> None:
    bench, other = make_bench(), make_bench()
    bench.queue.wake()
    with other.queue.storage.db() as connection:
        connection.execute("BEGIN EXCLUSIVE")
        took = ring(bench)
        connection.execute("ROLLBACK")
    assert took < BOUNDED_SECONDS


# Mail that nobody rings for

AWAY = {
    "refused": lambda server: server.kill9(),
    "hanging": lambda server: server.freeze(),
    "full": lambda server: server.client().config_set("maxmemory", 1),
    "read-only": lambda server: server.client().replicaof("127.0.0.1", 1),
    "flushed": lambda server: server.client().flushall(),
}


@pytest.mark.parametrize("threads", ["1", "4"])
@pytest.mark.parametrize("trouble", AWAY)
def test_due_mail_is_found_within_three_seconds_whatever_redis_does(
    trouble: str, threads: str, make_bench: Callable[..., Bench], own_redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(REDIS_URL=own_redis.url, WORKER_THREADS=threads)
    bench.start()
    AWAY[trouble](own_redis)
    for count in range(1, 4):
        began = time.monotonic()
        bench.due = 0.0
        bench.queue.wake()
        bench.wait_for_runs(count)
        assert bench.runs[count - 1] - began < 3
    assert not [record for record in caplog.records if record.exc_info], "Redis' troubles fill the log with tracebacks"


def test_what_falls_due_by_itself_is_found_at_its_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "LOOK_SECONDS", 60.0)
    due = time.monotonic() + 1
    bench.queue.lookout._look = lambda: due - time.monotonic()  # type: ignore[method-assign]
    bench.start()
    bench.wait_for_runs(1)
    assert bench.runs[0] >= due


def test_an_idle_process_looks_about_once_a_second(bench: Bench) -> None:
    bench.start()
    wait_for(lambda: len(bench.looks) >= 4, 15, "four looks")
    assert bench.looks[3] - bench.looks[0] > 2.5


def test_a_worker_whose_drain_fails_comes_again(bench: Bench) -> None:
    def fail() -> None:
        bench.runs.append(time.monotonic())
        raise CancelExecution

    bench.queue.drain = bench.queue.task(name="failing")(fail)
    bench.start()
    bench.due = 0.0
    bench.wait_for_runs(2)


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_a_drain_that_was_rung_for_is_tried_again_when_the_database_was_away(
    kind: str, make_bench: Callable[..., Bench], request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(**({"REDIS_URL": request.getfixturevalue("redis_url")} if kind == "redis" else {}))

    def fail_once() -> None:
        bench.runs.append(time.monotonic())
        if len(bench.runs) == 1:
            raise CancelExecution

    bench.queue.drain = bench.queue.task(name="failing", retries=2, retry_delay=1)(fail_once)
    bench.start()
    bench.queue.wake()
    bench.wait_for_runs(2)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_drain_that_must_be_tried_again_while_redis_is_away_leaves_no_traceback(
    own: Bench, own_redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    def lose_both() -> None:
        own_redis.kill9()
        own.runs.append(time.monotonic())
        raise CancelExecution

    own.queue.drain = own.queue.task(name="failing", retries=2, retry_delay=1)(lose_both)
    own.start()
    own.queue.wake()
    own.wait_for_runs(1)
    own.due = 0.0
    wait_for(lambda: "queue_unavailable" in caplog.messages, 10, "a word about Redis")
    assert not [record for record in caplog.records if record.exc_info]


# The consumer


def test_it_has_the_configured_threads_and_sweeps_as_often_as_configured(make_bench: Callable[..., Bench]) -> None:
    consumer = make_bench(WORKER_THREADS="7", SWEEP_SECONDS="13").queue.create_consumer(
        workers=1, worker_type="process"
    )
    assert len(consumer.worker_threads) == 7
    assert consumer.worker_type == "thread"
    assert consumer._create_scheduler().periodic_task_seconds == 13


def test_a_sweep_waits_for_no_drain_and_for_no_redis(own: Bench, own_redis: Redis) -> None:
    busy, sweeps = threading.Event(), []
    own.queue.settings = replace(own.queue.settings, sweep_seconds=1.0)
    own.queue.drain = own.queue.task(name="long")(lambda: busy.wait(30))
    own.queue.periodic_task(lambda _moment: True, name="sweep")(lambda: sweeps.append(time.monotonic()))
    for _ in range(4):
        own.queue.drain()
    own.start()
    wait_for(lambda: own.waiting == 0, 10, "every thread to be busy")
    own_redis.kill9()
    before = len(sweeps)
    try:
        wait_for(lambda: len(sweeps) >= before + 3, 10, "three sweeps")
    finally:
        busy.set()
    assert sweeps[before + 2] - sweeps[before] < 4


def test_periodic_tasks_run_at_the_configured_pace(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(SWEEP_SECONDS="1")
    bench.queue.periodic_task(lambda _moment: True, name="sweep")(bench._run)
    bench.start()
    bench.wait_for_runs(3)
    pace = (bench.runs[2] - bench.runs[0]) / 2
    assert 0.7 < pace < 2.5


def test_a_webhook_is_heard_at_once_without_redis_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "LOOK_SECONDS", 60.0)
    bench.start()
    bench.queue.wake()
    bench.wait_for_runs(1)
    bench.due = 0.0  # it was written to the table before somebody rang
    bench.queue.wake()
    bench.wait_for_runs(2)


def test_the_task_in_hand_is_finished_before_the_consumer_stops(make_bench: Callable[..., Bench]) -> None:
    bench, begun, finish, done = make_bench(), threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        finish.wait(10)
        done.append(True)

    slow = bench.queue.task(name="slow")(work)
    consumer = bench.start()
    slow()
    assert begun.wait(10)
    threading.Timer(0.3, finish.set).start()
    consumer.stop(graceful=True)
    assert done == [True]


def test_what_hangs_on_the_queue_is_told_of_start_and_stop_in_order(make_bench: Callable[..., Bench]) -> None:
    bench, told = make_bench(), []
    bench.queue.started = lambda: told.append("started")
    bench.queue.stopping = lambda: told.append("stopping")
    bench.queue.stopped = lambda: told.append("stopped")
    bench.start().stop(graceful=True)
    bench.consumer = None
    assert told == ["started", "stopping", "stopped"]


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_gracefully_however_many_signals_come(make_bench: Callable[..., Bench], first: int) -> None:
    consumer = make_bench().start()
    for number in (first, signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(number)
    assert consumer._signum == first
    assert (consumer._restart, consumer._graceful) == (False, True)
    assert signal.getsignal(signal.SIGTERM) == consumer._handle_signal


def test_it_goes_on_by_itself_when_redis_is_back_and_fills_no_disk_meanwhile(
    own: Bench, own_redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.kill9()
    own.start()
    wait_for(lambda: caplog.records, 10, "a word about Redis")
    began = time.monotonic()
    wait_for(lambda: time.monotonic() > began + 1.5, 5, "the rate to show")
    lines = len(caplog.records)
    own_redis.start()
    wait_for(lambda: own.queue.wake() or own.runs, SILENT_SECONDS + 5, "the next task to run")
    assert lines < 15


def test_a_queue_without_redis_has_no_redis_client(make_bench: Callable[..., Bench]) -> None:
    assert redis_client(make_bench().queue) is None
