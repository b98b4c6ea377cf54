"""What every transport does alike: build the message once, keep the deadline of its dot, and tell what became of it."""

from __future__ import annotations

from collections.abc import Callable

from emailsvc.clock import monotonic
from emailsvc.mail import Message, Outcome, Result
from emailsvc.mail.line import Cut, Line, LineCut
from emailsvc.mail.meaning import of_failure
from emailsvc.mail.message import Letter, build

IDLE_SECONDS = 30.0  # for which a connection is kept


class Transport:
    """Takes one message at a time, from one thread; only ``stop``, and after it ``close``, may be called by another."""

    def __init__(self, *, idempotency_header: str | None = None) -> None:
        self._idempotency_header = idempotency_header
        self._line = Line()
        self._step = ""

    def send(
        self, message: Message, *, deadline: float, reply_timeout: float, passing_dot: Callable[[], None] = lambda: None
    ) -> Result:
        """Never raises: whatever happens is a Result, because only the transport knows on which side of the final dot
        it happened.

        The dot is sent before ``deadline`` (monotonic) or never; its reply is waited for ``reply_timeout`` seconds.
        ``passing_dot`` is called when the dot alone is left to send, which is not done if it raises.
        """
        self._prepare()
        if not self._line.begin(deadline):
            return Result(Outcome.CUT, "shutting down; no conversation was begun")

        def pass_dot() -> None:
            passing_dot()
            # Asked last of all: the time that everything before took counts, too.
            if not self._line.pass_dot(monotonic() + reply_timeout):
                raise LineCut(Cut.DEADLINE.value)

        self._step = "building the message"
        try:
            return self._hand_over(build(message, self._idempotency_header), pass_dot)
        except Exception as exc:  # noqa: BLE001 - each failure has a meaning, which only this side of the dot knows
            return of_failure(exc, self._line.why(), self._step, after_dot=self._line.after_dot)
        finally:
            self._line.rest(monotonic() + IDLE_SECONDS)

    def stop(self, grace: float) -> None:
        """Shut down: cut a conversation that is before its dot; give one after it ``grace`` seconds more."""
        self._line.stop(grace)

    def close(self) -> None:
        """Let go of any kept connection, but not of a conversation. Trouble while doing so is logged, never raised."""

    def _prepare(self) -> None:
        """Before the conversation and its time begin."""

    def _hand_over(self, letter: Letter, pass_dot: Callable[[], None]) -> Result:
        """All but the dot, ``pass_dot``, which raises when it may not be sent, and the dot."""
        raise NotImplementedError
