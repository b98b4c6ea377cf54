"""Group commit: what comes together is committed together, and nobody waits for company.

The first call goes at once. Those that come while it is on its way share the next transaction, which one of them makes
for all. So a commit is shared exactly when commits are what everybody waits for, and alone nobody is slower.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

T = TypeVar("T")
R = TypeVar("R")

LOCK_MILLISECONDS = 100
"""How long a group may wait for a row: it must not hold up those who want others."""

_ROLLED_BACK = {
    "40P01",  # chosen to break a deadlock
    "55P03",  # waited too long for a lock
    "57014",  # cancelled, or out of time
}


def proves_rollback(exc: Exception) -> bool:
    """Does the error say that nothing of its transaction is stored? Values that the database refuses do, and those
    that the driver cannot send.
    """
    if isinstance(exc, DataError | IntegrityError | UnicodeEncodeError):
        return True
    state = getattr(exc.orig, "sqlstate", None) or "" if isinstance(exc, DBAPIError) else ""
    return state in _ROLLED_BACK or state.startswith("21")


class _Call(Generic[T, R]):
    """``told`` is free when there is an outcome, or it is this call's turn to lead. A bare lock: an Event makes a
    condition and two of them for every call.
    """

    __slots__ = ("apart", "error", "item", "leads", "results", "told")

    def __init__(self, item: T) -> None:
        self.item = item
        self.told = threading.Lock()
        self.told.acquire()
        self.leads = self.apart = False
        self.results: list[R] = []
        self.error: Exception | None = None


class GroupCommit(Generic[T, R]):
    """``together`` commits several items in one transaction and returns their results in order; ``alone`` one.

    ``together`` waits for locks no longer than ``LOCK_MILLISECONDS``. When its error proves that nothing was stored,
    each caller goes on ``alone``, in its own thread, so that one bad item fails no other. Any other error is raised by
    all of them: what became of their items is not known.
    """

    def __init__(self, together: Callable[[list[T]], Sequence[R]], alone: Callable[[T], R]) -> None:
        self._together, self._alone = together, alone
        self._begin()
        begin = weakref.WeakMethod(self._begin)
        os.register_at_fork(after_in_child=lambda: (again := begin()) and again())

    def _begin(self) -> None:
        """Anew in a forked child: whoever was on the way, or had the guard, stayed in the parent."""
        self._guard = threading.Lock()
        self._under_way = False
        self._waiting: list[_Call[T, R]] = []

    def __call__(self, item: T, seconds: float = math.inf) -> R:
        """Raises what the transaction raised, or SQLAlchemy's TimeoutError after so many seconds of waiting for others;
        then, too, it is not known what became of the item. Who leads waits as long as ``together`` takes.
        """
        call = _Call[T, R](item)
        with self._guard:
            self._waiting.append(call)
            call.leads, self._under_way = not self._under_way, True
        if not call.leads:
            self._wait(call, seconds)
        if call.leads:
            self._lead()
        return self._outcome(call)

    def _wait(self, call: _Call[T, R], seconds: float) -> None:
        if call.told.acquire(timeout=-1 if math.isinf(seconds) else max(0.0, seconds)):
            return
        with self._guard:
            if call.told.acquire(blocking=False):  # at the last moment, and if it is to lead, others wait for it
                return
            if call in self._waiting:
                self._waiting.remove(call)
        raise PoolTimeout("no time is left for the database")

    def _lead(self) -> None:
        """One transaction, and the next one is another's to make: no caller works for the others for longer."""
        with self._guard:
            group, self._waiting = self._waiting, []
        try:
            self._commit(group)
        finally:
            self._hand_over()
            for call in group:
                call.told.release()

    def _commit(self, group: list[_Call[T, R]]) -> None:
        try:
            results = self._together([call.item for call in group])
        except Exception as exc:  # noqa: BLE001 - each caller raises it
            apart = proves_rollback(exc)
            for call in group:
                call.apart, call.error = apart, exc
            return
        for call, result in zip(group, results, strict=True):
            call.results.append(result)

    def _hand_over(self) -> None:
        """To who came last and has most time left: a leader without any would fail those who have some."""
        with self._guard:
            self._under_way = bool(self._waiting)
            if self._waiting:
                leader = self._waiting[-1]
                leader.leads = True
                leader.told.release()

    def _outcome(self, call: _Call[T, R]) -> R:
        if call.results:
            return call.results[0]
        if call.apart:
            return self._alone(call.item)
        raise call.error or PoolTimeout("whoever was to commit it was stopped")
