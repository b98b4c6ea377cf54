"""The queue: messages that carry nothing, a bell that never holds a sender up, a consumer that stops politely."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from huey.storage import RedisStorage

from emailsvc import config
from emailsvc.clock import utcnow
from emailsvc.queue import ENOUGH_WAITING, SILENT_SECONDS, Doorbell, GracefulConsumer, build, redis_client
from tests.servers import Redis, wait_for

NEXT_MINUTE = 60.0
BOUNDED_SECONDS = 2.0


class Bench:
    """A queue with one task that counts its runs, its bell, and its consumer if one is started."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.queue = build(config.load(environ, folder))
        self.runs: list[float] = []
        self.drain = self.queue.task(name="drain", retries=8, retry_delay=1, retry_backoff=2)(self._run)
        self.bell = Doorbell(self.queue, self.drain)
        self.consumer: GracefulConsumer | None = None

    def _run(self) -> None:
        self.runs.append(time.monotonic())

    @property
    def waiting(self) -> int:
        return int(self.queue.pending_count())

    @property
    def scheduled(self) -> int:
        return int(self.queue.scheduled_count())

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
    bench.bell.wake()
    bench.start()
    bench.wait_for_runs(1)
    wait_for(lambda: bench.waiting == 0, 10, "the queue to be empty")
    assert len(bench.runs) == 1
    assert not (tmp_path / "exploded").exists()


def test_the_queue_keeps_no_results(bench: Bench) -> None:
    bench.bell.wake()
    bench.start()
    bench.wait_for_runs(1)
    assert bench.queue.result_count() == 0


# The bell


def test_a_wake_up_enqueues_one_task(bench: Bench) -> None:
    bench.bell.wake()
    assert bench.waiting == 1


def test_the_queue_stays_short_however_often_the_bell_is_rung(bench: Bench) -> None:
    for _ in range(5 * ENOUGH_WAITING):
        bench.bell.wake()
    assert bench.waiting == ENOUGH_WAITING


def in_seconds(seconds: float) -> datetime:
    return utcnow() + timedelta(seconds=seconds)


def test_one_task_a_second_is_scheduled_however_many_ask_for_it(bench: Bench) -> None:
    moment = in_seconds(30).replace(microsecond=0)
    for _ in range(10):
        bench.bell.schedule(moment)
        bench.bell.schedule(moment + timedelta(milliseconds=-400))
    assert bench.scheduled == 1
    bench.bell.schedule(moment + timedelta(milliseconds=1))
    assert bench.scheduled == 2
    assert bench.waiting == 0


def test_processes_that_share_a_redis_schedule_one_task_a_second_together(
    make_bench: Callable[..., Bench], redis_url: str
) -> None:
    benches = [make_bench(REDIS_URL=redis_url) for _ in range(3)]
    moment = in_seconds(20)
    for bench in benches:
        bench.bell.schedule(moment)
    assert benches[0].scheduled == 1


def test_what_is_further_away_than_a_minute_is_left_to_the_sweep(bench: Bench) -> None:
    bench.bell.schedule(in_seconds(NEXT_MINUTE + 2))
    bench.bell.schedule(in_seconds(86400))
    assert (bench.scheduled, bench.waiting) == (0, 0)
    bench.bell.schedule(in_seconds(NEXT_MINUTE - 2))
    assert bench.scheduled == 1


def test_where_sweeps_are_rare_drains_are_scheduled_as_far_as_to_the_next(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(SWEEP_SECONDS="3600")
    bench.bell.schedule(in_seconds(3500))
    bench.bell.schedule(in_seconds(3700))
    assert bench.scheduled == 1


def test_what_is_due_already_wakes_at_once(bench: Bench) -> None:
    bench.bell.schedule(in_seconds(-1))
    assert (bench.scheduled, bench.waiting) == (0, 1)


def test_a_scheduled_task_runs_at_its_time_and_not_before(bench: Bench) -> None:
    bench.start()
    due = time.monotonic() + 1.2
    bench.bell.schedule(in_seconds(1.2))
    bench.wait_for_runs(1)
    assert due <= bench.runs[0] < due + 3
    assert bench.scheduled == 0


def written_times(bench: Bench) -> list[float]:
    """Seconds since 1970, as they stand in the storage."""
    storage = bench.queue.storage
    if isinstance(storage, RedisStorage):
        return [score for _, score in storage.conn.zrange(storage.schedule_key, 0, -1, withscores=True)]
    return [row[0] for row in storage.sql("SELECT timestamp FROM schedule", results=True)]


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_a_scheduled_time_is_what_it_says_whatever_the_time_zone_of_the_machine(
    kind: str, make_bench: Callable[..., Bench], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    bench = make_bench(**({"REDIS_URL": request.getfixturevalue("redis_url")} if kind == "redis" else {}))
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=30)
    bench.bell.schedule(moment)
    assert written_times(bench) == [moment.timestamp()]
    assert bench.queue.read_schedule(moment.replace(tzinfo=None) - timedelta(seconds=1)) == []
    assert len(bench.queue.read_schedule(moment.replace(tzinfo=None))) == 1


def ring(bench: Bench) -> float:
    """How long it took."""
    began = time.monotonic()
    bench.bell.wake()
    return time.monotonic() - began


def test_a_redis_that_is_away_holds_nobody_up_and_is_left_alone_for_five_seconds(
    own: Bench, own_redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.kill9()
    assert ring(own) < BOUNDED_SECONDS
    failed = time.monotonic()
    own_redis.start()
    own.bell.wake()
    own.bell.schedule(in_seconds(10))
    assert (own.waiting, own.scheduled) == (0, 0)
    wait_for(lambda: own.bell.wake() or own.waiting, SILENT_SECONDS + 3, "the bell to ring again")
    assert time.monotonic() - failed > SILENT_SECONDS - 0.5
    assert caplog.messages.count("queue_unavailable") == 1


def test_a_hanging_redis_holds_nobody_up(own: Bench, own_redis: Redis) -> None:
    assert ring(own) < BOUNDED_SECONDS
    own_redis.freeze()
    first, second = ring(own), ring(own)
    began = time.monotonic()
    own.bell.schedule(in_seconds(5))
    third = time.monotonic() - began
    own_redis.thaw()
    assert first < BOUNDED_SECONDS
    assert max(second, third) < 0.5


def test_a_redis_that_never_answered_holds_nobody_up(own: Bench, own_redis: Redis) -> None:
    own_redis.freeze()  # connections are still taken, by the kernel
    took = ring(own)
    own_redis.thaw()
    assert took < BOUNDED_SECONDS


def test_a_locked_queue_file_holds_nobody_up(make_bench: Callable[..., Bench], tmp_path: Path) -> None:
    bench, other = make_bench(), make_bench()
    bench.bell.wake()
    with other.queue.storage.db() as connection:
        connection.execute("BEGIN EXCLUSIVE")
        took = ring(bench)
        connection.execute("ROLLBACK")
    assert took < BOUNDED_SECONDS


# The consumer


def test_it_has_the_configured_threads_and_sweeps_as_often_as_configured(make_bench: Callable[..., Bench]) -> None:
    consumer = make_bench(WORKER_THREADS="7", SWEEP_SECONDS="13").queue.create_consumer(
        workers=1, worker_type="process"
    )
    assert len(consumer.worker_threads) == 7
    assert consumer.worker_type == "thread"
    assert consumer.scheduler_class.periodic_task_seconds == 13


def test_periodic_tasks_run_at_the_configured_pace(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(SWEEP_SECONDS="1")
    bench.queue.periodic_task(lambda _moment: True, name="sweep")(bench._run)
    bench.start()
    bench.wait_for_runs(3)
    pace = (bench.runs[2] - bench.runs[0]) / 2
    assert 0.7 < pace < 2.5


def test_a_webhook_is_heard_at_once_without_redis_too(bench: Bench) -> None:
    bench.start()
    bench.bell.wake()
    bench.wait_for_runs(1)
    began = time.monotonic()
    bench.bell.wake()
    bench.wait_for_runs(2)
    assert bench.runs[1] - began < 1


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
    wait_for(lambda: own.bell.wake() or own.runs, SILENT_SECONDS + 5, "the next task to run")
    assert lines < 15


def test_a_queue_without_redis_has_no_redis_client(make_bench: Callable[..., Bench]) -> None:
    assert redis_client(make_bench().queue) is None
