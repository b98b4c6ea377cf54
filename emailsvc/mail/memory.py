"""A transport that keeps what it is given: for tests, of this service and of those who build on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from emailsvc.mail import Message, Outcome, Result
from emailsvc.mail.message import Letter
from emailsvc.mail.transport import Transport

Answer = Result | Callable[[Message], Result]


class MemoryTransport(Transport):
    """Answers ``sent`` unless told otherwise: ``answers`` are used up one a message, ``always`` applies after them.

    ``delivered`` is what the recipient got, ``messages`` the same as bytes. An uncertain answer delivers, too, unless
    ``lose_uncertain``: not to know is the point of it. ``attempts`` is every message that a conversation was begun for.
    """

    def __init__(
        self,
        answers: Iterable[Answer] = (),
        *,
        always: Answer = Result(Outcome.SENT, "250 kept in memory", 250),  # noqa: B008 - frozen
        lose_uncertain: bool = False,
        idempotency_header: str | None = None,
    ) -> None:
        super().__init__(idempotency_header=idempotency_header)
        self.answers = deque(answers)
        self.always = always
        self.attempts: list[Message] = []
        self.delivered: list[Message] = []
        self.messages: list[bytes] = []
        self._kept = {Outcome.SENT} if lose_uncertain else {Outcome.SENT, Outcome.UNCERTAIN}

    def _hand_over(self, letter: Letter, pass_dot: Callable[[], None]) -> Result:
        self._step = "the message"
        self.attempts.append(letter.message)
        pass_dot()
        answer = self.answers.popleft() if self.answers else self.always
        result = answer if isinstance(answer, Result) else answer(letter.message)
        if result.outcome in self._kept:
            self.delivered.append(letter.message)
            self.messages.append(letter.data)
        return result
