"""Named locks with an owner and a time to live. They save work; correctness rests on conditional updates.

"Not acquired" means later, never done. With the lock lost or Redis lying, work is done twice, harmlessly.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from redis import Redis
from redis.exceptions import RedisError
from redis.lock import Lock

log = logging.getLogger("emailsvc.locks")

PREFIX = "emailsvc.lock."


class Locks(Protocol):
    @contextmanager
    def hold(self, name: str, seconds: float) -> Iterator[bool]:
        """True inside if the work is ours for up to ``seconds``; False: somebody has the lock, so come again later."""
        ...


class RedisLocks:
    def __init__(self, client: Redis) -> None:
        self._client = client

    @contextmanager
    def hold(self, name: str, seconds: float) -> Iterator[bool]:
        # redis-py's Lock: owner token, release by script. An expired lock must not raise over the work's own outcome.
        lock = Lock(self._client, f"{PREFIX}{name}", timeout=seconds, blocking=False, raise_on_release_error=False)
        try:
            held = bool(lock.acquire())
        except RedisError as exc:
            log.warning("lock_unavailable", extra={"fields": {"lock": name, "error": str(exc)}})
            held = True  # without Redis each worker repairs for itself; twice is harmless, never would not be
        try:
            yield held
        finally:
            if held:
                self._release(lock, name)

    def _release(self, lock: Lock, name: str) -> None:
        try:
            if lock.local.token is not None:
                lock.release()
        except RedisError as exc:
            log.warning("lock_not_released", extra={"fields": {"lock": name, "error": str(exc)}})


class LocalLocks:
    """For one process without Redis; the same rules."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: dict[str, tuple[object, float]] = {}

    @contextmanager
    def hold(self, name: str, seconds: float) -> Iterator[bool]:
        owner, now = object(), time.monotonic()
        with self._guard:
            _, until = self._held.get(name, (None, 0.0))
            held = until <= now
            if held:
                self._held[name] = (owner, now + seconds)
        try:
            yield held
        finally:
            with self._guard:
                if held and self._held.get(name, (None, 0.0))[0] is owner:
                    del self._held[name]
