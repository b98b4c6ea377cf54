"""Rings on behalf of threads that do not wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

PAUSE_SECONDS = 0.01
"""After a ring: what falls into it is rung for at its end, once for all."""


class Ringer:
    """Rings at once, or shortly after the last ring; each ring begins after what it is for.

    ``ask`` never raises, and ``ring`` must not.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._asked = threading.Event()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        self._asked.set()
        if self._thread is None or not self._thread.is_alive():  # the first time, or in a forked child
            self._start()

    def _start(self) -> None:
        with self._guard:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="ringer", daemon=True)
                # Where no thread can be started, the next who asks tries again, and workers look by themselves:
                # what this is about is committed, and must not be answered with an error.
                with suppress(RuntimeError):
                    self._thread.start()

    def _run(self) -> None:
        while self._asked.wait():
            self._asked.clear()
            self._ring()
            time.sleep(PAUSE_SECONDS)
