"""What a reply, or the lack of one, means for an e-mail: the table of this folder's README, as pure functions.

The one question behind all of it: may the server have taken the message? Before the final dot the answer is no.
"""

from __future__ import annotations

from emailsvc.mail import Outcome, Result
from emailsvc.mail.connection import ConnectFailed, Reply, readable
from emailsvc.mail.line import Cut, LineCut

CLOSING = 421  # RFC 5321 §4.2.2: the server is about to end the connection
ACCOUNT = (530, 535, 538)  # RFC 4954 §6: trouble with our login, not with the mail
BAD_CONNECTION = ("4.4.2", "5.4.2")  # RFC 3463 §3.5: what some servers say when they close an idle one


class Stale(Exception):
    """A kept connection failed at its first command: the server had ended it, which says nothing about the e-mail."""


class Refused(Exception):
    """The server did not let us come to the dot."""

    def __init__(self, command: str, reply: Reply, *, usable: bool) -> None:
        super().__init__(f"{command}: {reply}")
        self.command = command
        self.reply = reply
        self.usable = usable  # the connection, for the next mail


def of_dot(reply: Reply) -> Result:
    """Any 2yz is a yes (a 251, too). What is neither yes nor no leaves open whether the message was taken."""
    outcome = {2: Outcome.SENT, 4: Outcome.DEFERRED, 5: Outcome.REJECTED}.get(reply.kind, Outcome.UNCERTAIN)
    return _result(outcome, str(reply), reply, ".")


def of_failure(exc: Exception, why: Cut | None, step: str, *, after_dot: bool) -> Result:
    """A conversation that did not come to a reply to its dot. ``why`` tells whether we ended it ourselves."""
    if after_dot:
        return Result(Outcome.UNCERTAIN, f"no reply to the final dot: {why.value if why else _words(exc)}")
    if isinstance(exc, Refused):
        return _of_refusal(exc)
    if not isinstance(exc, OSError):
        return Result(Outcome.REJECTED, f"{step}: {_words(exc)}")
    if why is Cut.STOP:
        return Result(Outcome.CUT, f"{why.value} at {step}; nothing was handed over")
    if isinstance(exc, ConnectFailed):
        return _result(Outcome.OUTAGE, str(exc), exc.reply)
    if why is Cut.DEADLINE or isinstance(exc, LineCut):
        return Result(Outcome.DEFERRED, f"{Cut.DEADLINE.value} at {step}; nothing was handed over")
    return Result(Outcome.DEFERRED, f"connection lost at {step}: {_words(exc)}")


def _of_refusal(refused: Refused) -> Result:
    reply = refused.reply
    if reply.code in ACCOUNT or (reply.code == CLOSING and refused.command == "MAIL"):
        return _result(Outcome.OUTAGE, str(refused), reply, refused.command)
    # Before the dot a reply that makes no sense is no verdict on the e-mail: try again later.
    outcome = Outcome.REJECTED if reply.kind == 5 else Outcome.DEFERRED
    return _result(outcome, str(refused), reply, refused.command)


def _result(outcome: Outcome, text: str, reply: Reply | None, command: str | None = None) -> Result:
    code = reply.code if reply and reply.code > 0 else None
    return Result(outcome, text, code, reply.enhanced if reply else None, command)


def _words(exc: Exception) -> str:
    return f"{type(exc).__name__}: {readable(str(exc))}".removesuffix(": ")
