"""A transport that keeps what it is given: for tests, of this service and of those who build on it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

from emailsvc.mail import Mail, Outcome, Result
from emailsvc.mail.message import build, needs_smtputf8

Answer = Result | Callable[[Mail], Result]


class MemoryTransport:
    """Answers ``sent`` unless told otherwise: ``answers`` are used up one a mail, ``always`` applies after them.

    ``delivered`` is what the recipient got, ``messages`` the same as bytes. An uncertain answer delivers, too, unless
    ``lose_uncertain``: not to know is the point of it. ``attempts`` is every mail that a conversation was begun for.
    """

    def __init__(
        self,
        answers: Iterable[Answer] = (),
        *,
        always: Answer = Result(Outcome.SENT, "250 kept in memory", 250),  # noqa: B008 - frozen
        lose_uncertain: bool = False,
        idempotency_header: str | None = None,
    ) -> None:
        self.answers = deque(answers)
        self.always = always
        self.attempts: list[Mail] = []
        self.delivered: list[Mail] = []
        self.messages: list[bytes] = []
        self._lose_uncertain = lose_uncertain
        self._idempotency_header = idempotency_header
        self._lock = threading.Lock()
        self._stopped = False

    def send(
        self, mail: Mail, *, timeout: float, reply_timeout: float, before_dot: Callable[[], bool] = lambda: True
    ) -> Result:
        if self._stopped:
            return Result(Outcome.CUT, "shutting down; no conversation was begun")
        with self._lock:
            self.attempts.append(mail)
        try:
            header, international = self._idempotency_header, needs_smtputf8(mail)
            data = build(mail, idempotency_header=header, smtputf8=international)
            if not before_dot():
                return Result(Outcome.DEFERRED, "the deadline passed at the message; nothing was handed over")
        except Exception as exc:  # noqa: BLE001 - as the SMTP transport does
            return Result(Outcome.REJECTED, f"building the message: {type(exc).__name__}: {exc}")
        return self._answer(mail, data)

    def stop(self, grace: float) -> None:
        self._stopped = True

    def close(self) -> None:
        pass

    def _answer(self, mail: Mail, data: bytes) -> Result:
        with self._lock:
            answer = self.answers.popleft() if self.answers else self.always
        result = answer if isinstance(answer, Result) else answer(mail)
        kept = {Outcome.SENT} if self._lose_uncertain else {Outcome.SENT, Outcome.UNCERTAIN}
        if result.outcome in kept:
            with self._lock:
                self.delivered.append(mail)
                self.messages.append(data)
        return result
