"""The doors through which Huey comes in: drain and sweep. Their bodies are elsewhere."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from huey.exceptions import CancelExecution
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from emailsvc import outbox, reports
from emailsvc.clock import monotonic
from emailsvc.context import Service
from emailsvc.delivery.drain import Drain
from emailsvc.delivery.notes import Note, Notebook, Unnoted, forget, left_behind
from emailsvc.delivery.persisting import DATABASE_AWAY
from emailsvc.errors import brief
from emailsvc.mail.transport import Transport
from emailsvc.outbox import InDoubt, SentTogether, Swept
from emailsvc.settings.config import Config
from emailsvc.wakeups.locks import Locks
from emailsvc.wakeups.lookout import Lookout, WrittenTo
from emailsvc.wakeups.queue import Queue

log = logging.getLogger("emailsvc.tasks")

WIRE_MODULE = "emailsvc.tasks"
"""Part of a task's name in the queue, which processes of another release read, too: it outlives moves of this file."""

HEARTBEAT_SECONDS = 10.0
TICK_SECONDS, IDLE_SECONDS = 1.0, 3.0
"""How often the actions that run are advanced, and how often is looked whether any does."""

GRACE_SECONDS = 20.0
"""How long a shutdown waits for the reply to a dot that was sent."""

HAND_BACK_SECONDS = 2.0
SIGN_OFF_SECONDS = 1.0


def register(queue: Queue, config: Config, engine: Engine, locks: Locks, transport: Callable[[], Transport]) -> Service:
    """Hang the tasks on the queue; the service that comes back can wake them."""
    crew = Crew(config, engine, transport, queue.wake)

    def drain() -> None:
        crew.drain()

    def sweep() -> None:
        crew.recover()
        run_sweep(config, engine, locks, queue.wake, crew.stopping)

    drain.__module__ = sweep.__module__ = WIRE_MODULE
    queue.drain = queue.task(name="drain", retries=8, retry_delay=1, retry_backoff=2)(drain)
    queue.periodic_task(lambda _moment: True, name="sweep")(sweep)
    queue.lookout = Lookout(crew.look, WrittenTo(str(engine.url.database)) if config.is_sqlite else None)
    queue.started, queue.stopping, queue.stopped = crew.start, crew.stop, crew.leave
    return Service(config, engine, queue.wake, outbox.Reception(engine, config, queue.wake_soon))


@dataclass
class Crew:
    """What the threads of one worker process share: a transport for each, the heartbeat, and the order to stop."""

    config: Config
    engine: Engine
    make_transport: Callable[[], Transport]
    wake: Callable[[], None]
    name: str = field(default_factory=lambda: f"{socket.gethostname()[-56:]}:{os.getpid()}")
    stopping: threading.Event = field(default_factory=threading.Event)
    in_doubt: InDoubt = field(default_factory=InDoubt)
    _sent_together: SentTogether = field(init=False)
    _notebook: Notebook | None = None
    _own: threading.local = field(default_factory=threading.local)
    _all: list[Transport] = field(default_factory=list)
    _drains: list[Drain] = field(default_factory=list)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._sent_together = SentTogether(self.engine)

    def drain(self) -> None:
        transport, note = self._of_this_thread()
        drain = Drain(
            self.engine, self.config, transport, self.stopping, self.wake, self._sent_together, note, self.in_doubt
        )
        with self._guard:
            self._drains.append(drain)
        try:
            drain.run()
        except DATABASE_AWAY as exc:
            log.warning("database_away", extra={"fields": {"doing": "drain", "error": brief(exc)}})
            raise CancelExecution from exc  # to Huey: come again if somebody rang for this, and write no traceback
        finally:
            with self._guard:
                self._drains.remove(drain)

    def look(self) -> float | None:
        self.in_doubt.settle(self.engine, self.config)
        return outbox.look(self.engine)

    def recover(self) -> None:
        """Give back what workers that were killed on this machine provably never handed over, without a lease's wait.

        Their claims may still be on their way, so they are looked for until no lease of theirs can be running.
        """
        try:
            for path, found in left_behind(self._notes):
                released = sum(
                    outbox.recover(self.engine, one.token, one.row_id, self.config, dot_may_be_sent=one.dot_may_be_sent)
                    for one in found
                )
                if released:
                    log.warning("recovered", extra={"fields": {"worker": path.name, "released": released}})
                forget(path, self.config.lease_seconds + 2 * self.config.sweep_seconds)
        except (OSError, SQLAlchemyError) as exc:
            log.warning("recovery_failed", extra={"fields": {"error": brief(exc)}})

    @property
    def _notes(self) -> Path:
        return self.config.instance / "notes"

    def _of_this_thread(self) -> tuple[Transport, Note]:
        if not hasattr(self._own, "transport"):
            made = self.make_transport()
            with self._guard:
                self._own.transport, self._own.note = made, self._new_note()
                self._all.append(made)
                if self.stopping.is_set():
                    made.stop(0)
        return self._own.transport, self._own.note

    def _new_note(self) -> Note:
        try:
            self._notebook = self._notebook or Notebook(self._notes)
            return self._notebook.note()
        except OSError as exc:
            log.warning("notes_unavailable", extra={"fields": {"folder": str(self._notes), "error": brief(exc)}})
            return Unnoted()

    def start(self) -> None:
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        threading.Thread(target=self._advance, name="actions", daemon=True).start()

    def stop(self) -> None:
        """Cut what is before its dot, give what is after it some seconds, and give back what was not begun."""
        with self._guard:
            self.stopping.set()
            for transport in self._all:
                transport.stop(GRACE_SECONDS)
            drains = list(self._drains)
        _within(HAND_BACK_SECONDS, *(partial(self._hand_back, drain) for drain in drains))

    def leave(self) -> None:
        _within(SIGN_OFF_SECONDS, self._sign_off, *(transport.close for transport in self._all))

    def _hand_back(self, drain: Drain) -> None:
        try:
            drain.hand_back()
        except SQLAlchemyError as exc:  # its own thread goes on trying
            log.warning("release_failed", extra={"fields": {"error": brief(exc)}})

    def _sign_off(self) -> None:
        try:
            outbox.forget_worker(self.engine, self.name)
        except SQLAlchemyError as exc:
            log.warning("deregister_failed", extra={"fields": {"worker": self.name, "error": brief(exc)}})

    def _beat(self) -> None:
        while True:
            try:
                outbox.heartbeat(self.engine, self.name)
                self.in_doubt.settle(self.engine, self.config)  # threads that are all busy do not look
            except SQLAlchemyError as exc:
                log.warning("heartbeat_failed", extra={"fields": {"worker": self.name, "error": brief(exc)}})
            else:
                self._roll_up()
            if self.stopping.wait(HEARTBEAT_SECONDS):
                return

    def _roll_up(self) -> None:
        try:
            outbox.roll_up(self.engine)
        except SQLAlchemyError as exc:
            log.error("repair_failed", extra={"fields": {"step": "roll-up", "error": brief(exc)}})

    def _advance(self) -> None:
        pause = IDLE_SECONDS
        while not self.stopping.wait(pause):
            try:
                pause = TICK_SECONDS if outbox.advance(self.engine) else IDLE_SECONDS
            except SQLAlchemyError as exc:
                log.warning("database_away", extra={"fields": {"doing": "advance actions", "error": brief(exc)}})


def _within(seconds: float, *acts: Callable[[], None]) -> None:
    """Do all of it at once, and wait no longer: a database that hangs must not hold up the end of the process."""
    deadline = monotonic() + seconds
    threads = [threading.Thread(target=act, daemon=True) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - monotonic()))


def run_sweep(
    config: Config, engine: Engine, locks: Locks, wake: Callable[[], None], stopping: threading.Event
) -> None:
    """Repairs under one lock, retention under another; then a part of the invariant."""
    with locks.hold("sweep", max(5.0, config.sweep_seconds)) as held:
        if not held:
            return
        swept = outbox.sweep(engine, config, stopping)
        wake()  # whatever wake-up was lost
        with locks.hold("purge", 300.0) as purging:
            if purging:
                outbox.retain(engine, config, swept, stopping)
        _report(swept)
        if not swept.away:
            _check_invariant(config, engine)


def _check_invariant(config: Config, engine: Engine) -> None:
    try:
        for violation in reports.glance(engine, config):
            log.error("invariant_broken", extra={"fields": {"what": violation}})
    except SQLAlchemyError as exc:
        log.error("repair_failed", extra={"fields": {"step": "invariant", "error": brief(exc)}})


def _report(swept: Swept) -> None:
    for email_id, state in swept.uncertain:
        log.warning("worker_lost", extra={"fields": {"email_id": email_id, "state": state}})
    for email_id, reason in swept.buried:
        log.warning("dead_lettered", extra={"fields": {"email_id": email_id, "reason": reason}})
    outbox.log_settled(swept.settled)
    counts: dict[str, Any] = {
        "uncertain": len(swept.uncertain), "released": swept.released, "dead_lettered": len(swept.buried),
        "settled": len(swept.settled), "scrubbed": swept.scrubbed, "purged": swept.purged,
        "forgotten": swept.forgotten,
    }  # fmt: skip
    found = {name: count for name, count in counts.items() if count}
    log.log(logging.INFO if found else logging.DEBUG, "swept", extra={"fields": found})
