"""Huey, set up so that its messages carry nothing: each one only says "look at the table".

Huey pops without an acknowledgement and may lose or double any message; losing all of them loses no e-mail.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from huey import Huey
from huey.consumer import Consumer, Scheduler
from huey.registry import Message
from huey.serializer import Serializer
from huey.storage import RedisStorage, SqliteStorage
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from emailsvc.clock import monotonic, utcnow
from emailsvc.config import Config
from emailsvc.errors import ConfigurationError
from emailsvc.parsers import REDIS_URL

log = logging.getLogger("emailsvc.queue")

SOCKET_SECONDS = 1.0
"""Longest wait for Redis on any one command: a webhook sends two, and is answered within 2 s."""

POP_SECONDS = 0.5
ENOUGH_WAITING = 16
"""A drain that was not popped yet will see our row, because it claims after it is popped."""

SILENT_SECONDS = 5.0
AWAY_SECONDS = 1.0
AHEAD_SECONDS = 60.0
"""Drains are scheduled so far ahead, or as far as to the next sweep, whichever is more."""

SHUTDOWN_SECONDS = 24.0
QUEUE_ERRORS = (RedisError, sqlite3.Error, OSError)


class JsonSerializer(Serializer):  # type: ignore[misc]
    """Huey's default is pickle: a forged message in a shared Redis would run code. Our tasks have no arguments."""

    def _serialize(self, data: Any) -> bytes:
        if data.args or data.kwargs:
            raise ValueError("tasks of this service carry nothing")
        eta = data.eta.isoformat() if data.eta else None
        return json.dumps([data.id, data.name, eta, data.retries, data.retry_delay, data.retry_backoff]).encode()

    def _deserialize(self, data: bytes) -> Message:
        task_id, name, eta, retries, delay, backoff = json.loads(bytes(data))
        return Message(
            id=str(task_id), name=str(name), eta=datetime.fromisoformat(eta) if eta else None, retries=int(retries),
            retry_delay=float(delay), retry_backoff=float(backoff), args=(), kwargs={},
        )  # fmt: skip


class GracefulConsumer(Consumer):  # type: ignore[misc]
    """Stops once, and properly: platforms send SIGTERM several times, and Huey's own second one means "now"."""

    def start(self) -> None:
        super().start()
        self.huey.started()

    def stop(self, graceful: bool = False) -> None:
        self.huey.stopping()
        super().stop(graceful=graceful)
        self.huey.stopped()

    def _handle_signal(self, signum: int, frame: Any) -> None:
        if not getattr(self, "_told", False):
            self._told = True
            self._restart, self._graceful = self._signal_actions[signum]
            self._signum = signum


class Queue(Huey):  # type: ignore[misc]
    """Huey with our consumer. ``started``, ``stopping`` and ``stopped`` are called in the consumer's main thread."""

    def __init__(self, config: Config, **storage: Any) -> None:
        super().__init__("emailsvc", results=False, serializer=JsonSerializer(), **storage)
        self.settings = config
        self._told_until = 0.0
        self.started: Callable[[], None] = lambda: None
        self.stopping: Callable[[], None] = lambda: None
        self.stopped: Callable[[], None] = lambda: None

    def dequeue(self) -> Any:
        try:
            return super().dequeue()
        except QUEUE_ERRORS as exc:
            self._away(exc)
            time.sleep(AWAY_SECONDS)
            return None

    def read_schedule(self, timestamp: datetime | None = None) -> Any:
        try:
            return super().read_schedule(timestamp)
        except QUEUE_ERRORS as exc:
            self._away(exc)
            return []

    def _away(self, exc: Exception) -> None:
        """One line every few seconds, from whichever thread is first; Huey would write a traceback for each try."""
        if monotonic() >= self._told_until:
            self._told_until = monotonic() + SILENT_SECONDS
            log.warning("queue_unavailable", extra={"fields": {"error": str(exc) or type(exc).__name__}})

    def create_consumer(self, **options: Any) -> GracefulConsumer:
        # huey_consumer has just given its logger a handler of its own; ours on the root is enough.
        logging.getLogger("huey").handlers.clear()
        logging.getLogger("huey").setLevel(logging.WARNING)
        options |= {
            "workers": self.settings.worker_threads,
            "worker_type": "thread",
            "graceful_signal": "TERM",
            "shutdown_timeout": SHUTDOWN_SECONDS,
            "initial_delay": 0.1,  # a SQLite file is polled; by default up to 10 s apart
            "backoff": 1.0,
            "max_delay": 0.1,
        }
        consumer = GracefulConsumer(self, **options)
        consumer._signal_actions[signal.SIGINT] = (False, True)
        scheduler = type("Scheduler", (Scheduler,), {"periodic_task_seconds": self.settings.sweep_seconds})
        consumer.scheduler_class = scheduler
        consumer.scheduler = consumer._create_process(consumer._create_scheduler(), "Scheduler")
        return consumer


def build(config: Config) -> Queue:
    """On Redis when REDIS_URL is set, else on a SQLite file of its own (on the service's file it would lock itself)."""
    # Huey takes its naive UTC times through local time; only where that is UTC are they what they say.
    os.environ["TZ"] = "UTC"
    time.tzset()
    if config.redis_url is None:
        path = str(config.instance / "queue.db")
        try:
            return Queue(config, storage_class=SqliteStorage, filename=path, fsync=False, timeout=SOCKET_SECONDS)
        except sqlite3.Error as exc:
            raise ConfigurationError(
                f"{path} cannot be used: {exc}. It holds only wake-ups; make its folder writable, or remove the file."
            ) from exc
    pool = _pool(config.redis_url)
    return Queue(config, storage_class=RedisStorage, connection_pool=pool, read_timeout=POP_SECONDS)


def _pool(url: str) -> ConnectionPool:
    try:
        pool = ConnectionPool.from_url(
            url,
            socket_timeout=SOCKET_SECONDS,
            socket_connect_timeout=SOCKET_SECONDS,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=30,
        )
        pool.make_connection()  # connects to nothing yet, but only now are the URL's options looked at
    except (TypeError, ValueError, RedisError):
        raise ConfigurationError(f"REDIS_URL=(not shown): expected {REDIS_URL}.") from None
    return pool


def redis_client(queue: Queue) -> Redis | None:
    return getattr(queue.storage, "conn", None) if isinstance(queue.storage, RedisStorage) else None


class Doorbell:
    """Asks for drains. Never raises or blocks for long: a sender waits, and the sweep repairs what is lost."""

    def __init__(self, queue: Queue, drain: Any) -> None:
        self._queue, self._drain = queue, drain
        self._silent_until = 0.0
        self._guard = threading.Lock()
        self._scheduled: set[int] = set()

    def wake(self) -> None:
        """Enqueue a drain unless enough tasks wait already. Call it after the commit that it is about."""

        def ring() -> None:
            if self._queue.pending_count() < ENOUGH_WAITING:
                self._drain()

        self._bounded(ring)

    def schedule(self, moment: datetime) -> None:
        """Enqueue a drain for that time. One per second, and none later than a sweep will ask by itself.

        That drain schedules the next one when it has run out of work, so the first of many times is enough.
        """
        ahead = (moment - utcnow()).total_seconds()
        second = math.ceil(moment.timestamp())
        if ahead <= 0:
            self.wake()
        elif ahead <= max(AHEAD_SECONDS, self._queue.settings.sweep_seconds) and self._is_first(second):
            self._bounded(lambda: self._add(second), lambda: self._scheduled.discard(second))

    def _is_first(self, second: int) -> bool:
        with self._guard:
            now = int(time.time())
            self._scheduled = {known for known in self._scheduled if known >= now}
            known = second in self._scheduled
            self._scheduled.add(second)
            return not known

    def _add(self, second: int) -> None:
        task = self._drain.s()
        # The same id for the same second makes the same message, which Redis keeps once however many ask for it.
        task.id = f"drain-{second}"
        task.eta = datetime.fromtimestamp(second, UTC).replace(tzinfo=None)
        self._queue.add_schedule(task)

    def _bounded(self, act: Callable[[], None], undo: Callable[[], None] = lambda: None) -> None:
        if monotonic() < self._silent_until:
            undo()
            return
        try:
            act()
        except QUEUE_ERRORS as exc:
            undo()
            self._silent_until = monotonic() + SILENT_SECONDS
            fields = {"error": str(exc) or type(exc).__name__, "silent_for": SILENT_SECONDS}
            log.warning("queue_unavailable", extra={"fields": fields})
