"""The line to the mail server, as far as time is concerned: who may still speak, until when, and who cut it.

One lock decides every race between the deadline, a shutdown and the final dot.
"""

from __future__ import annotations

import contextlib
import enum
import math
import socket
import threading
from collections.abc import Callable
from typing import TypeVar

from emailsvc.clock import monotonic
from emailsvc.watchdog import WATCHDOG, Watchdog

T = TypeVar("T")


class Cut(enum.Enum):
    DEADLINE = "the deadline passed"
    STOP = "shutting down"


class Phase(enum.Enum):
    IDLE = enum.auto()
    BEFORE_DOT = enum.auto()
    AFTER_DOT = enum.auto()


class LineCut(OSError):
    """The wait was ended by us, not by the server."""


class Line:
    def __init__(self, watchdog: Watchdog = WATCHDOG) -> None:
        self._changed = threading.Condition()
        self._watchdog = watchdog
        self._handle: socket.socket | None = None
        self._deadline = math.inf
        self._phase = Phase.IDLE
        self._stopped = False
        self.cut: Cut | None = None  # of the present conversation
        watchdog.watch(self)

    def begin(self, deadline: float) -> bool:
        """Start a conversation that must pass its dot by ``deadline`` (monotonic). False after ``stop``."""
        with self._changed:
            if self._stopped:
                return False
            self.cut, self._phase, self._deadline = None, Phase.BEFORE_DOT, deadline
        self._watchdog.due(deadline)
        return True

    def pass_dot(self, reply_deadline: float) -> bool:
        """The step of no return, atomic: from now on only ``reply_deadline`` cuts. False when already cut."""
        with self._changed:
            if self.cut is None and monotonic() >= self._deadline:
                self._shut(Cut.DEADLINE)
            if self.cut is not None:
                return False
            self._phase, self._deadline = Phase.AFTER_DOT, reply_deadline
        self._watchdog.due(reply_deadline)
        return True

    def rest(self, until: float) -> None:
        """The conversation is over; a kept socket is shut at ``until``."""
        with self._changed:
            self._phase, self._deadline = Phase.IDLE, until
        self._watchdog.due(until)

    def rest_unless_busy(self, until: float) -> bool:
        """``rest`` for another thread than the one that sends; False, and nothing changed, within a conversation."""
        with self._changed:
            if self._phase is not Phase.IDLE:
                return False
            self._deadline = until
        self._watchdog.due(until)
        return True

    def stop(self, grace: float) -> None:
        """No conversation begins any more. One before its dot is cut now, one after it in ``grace`` seconds."""
        with self._changed:
            self._stopped = True
            if self._phase is Phase.AFTER_DOT:
                self._deadline = min(self._deadline, monotonic() + grace)
            elif self._phase is Phase.BEFORE_DOT:
                self._shut(Cut.STOP)
            deadline = self._deadline
        self._watchdog.due(deadline)

    def tick(self, now: float) -> float:
        with self._changed:
            if now >= self._deadline:
                self._shut(Cut.STOP if self._stopped else Cut.DEADLINE)
            return self._deadline

    def remaining(self) -> float:
        """Seconds until the deadline. Raises LineCut when there are none, or somebody cut the line."""
        with self._changed:
            seconds = self._deadline - monotonic()
            if self.cut is not None or seconds <= 0:
                raise LineCut((self.cut or Cut.DEADLINE).value)
            return seconds

    def why(self) -> Cut | None:
        """Who cut the present conversation, or would any moment now."""
        with self._changed:
            return self.cut or (Cut.DEADLINE if monotonic() >= self._deadline else None)

    @property
    def after_dot(self) -> bool:
        return self._phase is Phase.AFTER_DOT

    def attach(self, sock: socket.socket) -> None:
        """From now on ``sock`` is the one to shut, through a duplicate: TLS takes the original's descriptor away."""
        handle = sock.dup()
        with self._changed:
            self._release()
            self._handle = handle
            if self.cut is not None:
                self._shut(self.cut)

    def release(self) -> None:
        with self._changed:
            self._release()

    def call(self, function: Callable[[], T]) -> T:
        """Run what nobody can interrupt (a name look-up) aside. When the line is cut it is left behind: LineCut."""
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(function())
            except BaseException as exc:  # noqa: BLE001 - raised again below, in the thread that asked
                errors.append(exc)
            with self._changed:
                self._changed.notify_all()

        threading.Thread(target=run, name="smtp-lookup", daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: results or errors or self.cut is not None)
        if results:
            return results[0]
        raise errors[0] if errors else LineCut((self.cut or Cut.DEADLINE).value)

    def _shut(self, why: Cut) -> None:
        self.cut, self._deadline = why, math.inf
        if self._handle is not None:
            # Ends any read or write of the other thread; closing is left to that thread, so no descriptor is reused.
            with contextlib.suppress(OSError):
                self._handle.shutdown(socket.SHUT_RDWR)
        self._changed.notify_all()

    def _release(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None
