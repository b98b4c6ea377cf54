"""Claim → send → record: the loop of one worker thread. No Flask, no Huey, and no transaction open while SMTP runs."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Engine

from emailsvc import outbox
from emailsvc.clock import monotonic
from emailsvc.delivery.batch import Batch
from emailsvc.delivery.notes import Note, Unnoted
from emailsvc.mail.transport import Transport
from emailsvc.outbox import Claim, Idle, InDoubt, SentTogether
from emailsvc.settings.config import Config

LOW_FIRST_EVERY = 10
MAX_WAIT_SECONDS = 1.0
"""A drain waits so long for its slot under a rate limit; for a later one it comes again."""


@dataclass(eq=False)
class Drain:
    """One thread's way through what is due. ``wake`` asks for further drains."""

    engine: Engine
    config: Config
    transport: Transport
    stopping: threading.Event
    wake: Callable[[], None]
    sent_together: SentTogether
    note: Note = field(default_factory=Unnoted)
    in_doubt: InDoubt = field(default_factory=InDoubt)
    _batch: Batch | None = None

    def run(self) -> None:
        """Work until nothing is due or the process stops. Raises the database's errors."""
        turn = secrets.randbelow(LOW_FIRST_EVERY)
        while not self.stopping.is_set():
            turn += 1
            asked = monotonic()
            claim = self._claim(low_first=turn % LOW_FIRST_EVERY == 0)
            if isinstance(claim, Claim):
                if claim.full:
                    self.wake()
                self._batch = Batch(self, claim, asked)
                self._batch.work()
            elif claim.wait is None or claim.wait > MAX_WAIT_SECONDS:
                return
            else:
                self.stopping.wait(claim.wait)

    def hand_back(self) -> None:
        """Called by another thread once nothing can start any more: release what the batch in hand has not begun.

        Only to be quick about it, while a reply is waited for; the drain's own thread does it, too.
        """
        rows = list(self._batch.rows) if self._batch else []
        if self._batch and rows:
            outbox.release(self.engine, self._batch.claim.token, self.config, [row.id for row in rows])

    def _claim(self, *, low_first: bool) -> Claim | Idle:
        token = secrets.token_hex(16)
        self.note.claims(token)
        try:
            return outbox.claim(self.engine, token, self.config, low_first=low_first)
        except Exception:
            self.in_doubt.add(token, self.config.lease_seconds)
            raise
