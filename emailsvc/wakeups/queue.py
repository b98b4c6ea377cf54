"""Huey, set up so that its messages carry nothing: each one only says "look at the table".

Huey pops without an acknowledgement and may lose or double any message; losing all of them loses no e-mail.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from huey import Huey
from huey.api import Task, TaskWrapper
from huey.consumer import Consumer, Scheduler
from huey.registry import Message
from huey.serializer import Serializer
from huey.storage import RedisStorage, SqliteStorage
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from emailsvc.clock import monotonic
from emailsvc.errors import ConfigurationError
from emailsvc.settings.config import Config
from emailsvc.settings.parsers import REDIS_URL
from emailsvc.wakeups.lookout import Lookout
from emailsvc.wakeups.ringer import Ringer

log = logging.getLogger("emailsvc.queue")

T = TypeVar("T")

SOCKET_SECONDS = 1.0
"""Longest wait for Redis on any one command: a ring is two, so who waits for it does so for 2 s at most."""

POP_SECONDS = 0.5
POLL_SECONDS = 0.1
"""A queue file is looked at as often; by default Huey leaves up to 10 s between. Beside an SQLite database, which tells
by itself that something was written, it need not be."""

ENOUGH_WAITING = 16
"""A drain that was not popped yet will see our row, because it claims after it is popped."""

SILENT_SECONDS = 5.0
AWAY_SECONDS = 1.0
SHUTDOWN_SECONDS = 22.0
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


class SweepScheduler(Scheduler):  # type: ignore[misc]
    """Runs the periodic tasks itself, so that neither a queue that is away nor long drains can hold up a sweep."""

    def __init__(self, huey: Queue, *args: Any, **options: Any) -> None:
        super().__init__(huey, *args, **options)
        self.periodic_task_seconds = huey.settings.sweep_seconds

    def enqueue_periodic_tasks(self, now: datetime | None) -> None:
        for task in self.huey.read_periodic(now):
            self.huey.execute(task)


class GracefulConsumer(Consumer):  # type: ignore[misc]
    """Stops once, and properly: platforms send SIGTERM several times, and Huey's own second one means "now"."""

    scheduler_class = SweepScheduler

    def start(self) -> None:
        super().start()
        self.huey.started()

    def stop(self, graceful: bool = False) -> None:
        deadline = monotonic() + SHUTDOWN_SECONDS
        self.huey.stopping()
        self.shutdown_timeout = max(0.0, deadline - monotonic())
        super().stop(graceful=graceful)
        self.huey.stopped()

    def _handle_signal(self, signum: int, frame: Any) -> None:
        if not getattr(self, "_told", False):
            self._told = True
            self._restart, self._graceful = self._signal_actions[signum]
            self._signum = signum


class Queue(Huey):  # type: ignore[misc]
    """Huey with our consumer, and without any need of its storage: what that loses, ``lookout`` finds in the table.

    ``started``, ``stopping`` and ``stopped`` are called in the consumer's main thread.
    """

    drain: TaskWrapper
    lookout: Lookout

    def __init__(self, config: Config, **storage: Any) -> None:
        super().__init__("emailsvc", results=False, serializer=JsonSerializer(), **storage)
        self.settings = config
        self._waits = self.storage.blocking
        self.storage.blocking = (
            True  # to Huey's workers: a file is polled in ``dequeue``, where mail is looked for, too
        )
        self._silent_until = 0.0
        self._ringer = Ringer(self.wake)
        self.started: Callable[[], None] = lambda: None
        self.stopping: Callable[[], None] = lambda: None
        self.stopped: Callable[[], None] = lambda: None

    def wake(self) -> None:
        """Ask for a drain unless enough tasks wait already. Call it after the commit that it is about.

        Never raises or blocks for long: a client waits, and workers look by themselves for what is lost here.
        """
        if self.pending_count() < ENOUGH_WAITING:
            self.drain()
        if self._is_away:
            self.lookout.nudge()

    def wake_soon(self) -> None:
        """The same for who cannot wait: in a thread of its own, once for all who ask within a few milliseconds."""
        self._ringer.ask()

    def dequeue(self) -> Any:
        """What somebody rang for; else, when the table has something due, a drain of this worker's own."""
        patience = AWAY_SECONDS if self._is_away or self.settings.is_sqlite else 0.0 if self._waits else POLL_SECONDS
        task = self._pop()
        if task is None and self.lookout.wait(patience):
            task = self.drain.s(retries=0)
        return task

    def _pop(self) -> Any:
        try:
            return self._ask(super().dequeue, None)
        except Exception as exc:  # noqa: BLE001 - whatever a stranger or another release put there, the look goes on
            log.warning("message_unreadable", extra={"fields": {"error": f"{type(exc).__name__}: {exc}"[:200]}})
            return None

    def enqueue(self, task: Task) -> Any:
        return self._ask(lambda: super(Queue, self).enqueue(task), None)

    def pending_count(self) -> int:
        return int(self._ask(super().pending_count, 0))

    def add_schedule(self, task: Task) -> None:
        self._ask(lambda: super(Queue, self).add_schedule(task), None)

    def read_schedule(self, timestamp: datetime | None = None) -> list[Task]:
        found: list[Task] = self._ask(lambda: super(Queue, self).read_schedule(timestamp), [])
        return found

    def is_revoked(self, task: Task, timestamp: datetime | None = None, peek: bool = True) -> bool:
        return False  # nobody revokes; Huey would ask Redis before each task, and run none while it is away

    def delete(self, key: str) -> bool:
        return False  # Huey takes back a revocation after each task

    @property
    def _is_away(self) -> bool:
        return monotonic() < self._silent_until

    def _ask(self, act: Callable[[], T], otherwise: T) -> T:
        """Storage that fails gets one line in the log, and is then left alone for some seconds."""
        if self._is_away:
            return otherwise
        try:
            return act()
        except QUEUE_ERRORS as exc:
            self._silent_until = monotonic() + SILENT_SECONDS
            fields = {"error": str(exc) or type(exc).__name__, "silent_for": SILENT_SECONDS}
            log.warning("queue_unavailable", extra={"fields": fields})
            return otherwise

    def create_consumer(self, **options: Any) -> GracefulConsumer:
        # huey_consumer has just given its logger a handler of its own; ours on the root is enough.
        logging.getLogger("huey").handlers.clear()
        logging.getLogger("huey").setLevel(logging.ERROR)  # that a task will be retried was said by the task
        options |= {"workers": self.settings.worker_threads, "worker_type": "thread", "graceful_signal": "TERM"}
        consumer = GracefulConsumer(self, **options)
        consumer._signal_actions[signal.SIGINT] = (False, True)
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
