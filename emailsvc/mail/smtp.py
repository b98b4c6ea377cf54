"""Hands mail to the mail server, and knows on which side of the final dot whatever happened happened.

MAIL, RCPT, DATA and the dot are driven by hand: smtplib's errors do not say whether the server may have taken the
message. What the replies mean stands in ``meaning``, who may end a wait in ``line``.
"""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from emailsvc.clock import monotonic
from emailsvc.mail import Outcome, Result
from emailsvc.mail.connection import Connection, Reply
from emailsvc.mail.header import Unbuildable
from emailsvc.mail.line import Line
from emailsvc.mail.meaning import ACCOUNT, BAD_CONNECTION, CLOSING, Refused, Stale, of_dot
from emailsvc.mail.message import Letter
from emailsvc.mail.transport import Transport
from emailsvc.settings.parsers import SmtpServer

logger = logging.getLogger(__name__)

EMAILS_PER_CONNECTION = 100  # servers close with 421 after 25 to 350
QUIT_SECONDS = 1.0
CHECK_SECONDS = 15.0

_leading_dot = re.compile(rb"(?m)^\.")


class SmtpTransport(Transport):
    """Keeps one connection."""

    def __init__(
        self,
        server: SmtpServer,
        *,
        idempotency_header: str | None = None,
        bounce_address: str | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(idempotency_header=idempotency_header)
        self._server = server
        self._bounce_address = bounce_address
        self._context = context
        self._connection: Connection | None = None
        self._needs_reset = False

    def close(self) -> None:
        """QUIT, politely but not for long. A conversation of another thread is left alone: reading its reply, or ending
        its line, would make a lie of what it says about its dot.
        """
        if not self._line.rest_unless_busy(monotonic() + QUIT_SECONDS):
            return
        connection, self._connection = self._connection, None
        if connection is not None:
            _quit(connection)

    def _prepare(self) -> None:
        """Part with a connection that was idle for too long, or has taken many messages."""
        if self._line.why():
            self._drop()
        elif self._connection is not None and self._connection.conversations >= EMAILS_PER_CONNECTION:
            self.close()

    def _hand_over(self, letter: Letter, pass_dot: Callable[[], None]) -> Result:
        usable = sent = False
        try:
            result = self._deliver(letter, pass_dot)
            sent = result.outcome is Outcome.SENT
            usable = result.outcome is not Outcome.UNCERTAIN and result.code != CLOSING
            return result
        except Unbuildable:
            usable = True
            raise
        except Refused as refused:
            usable = refused.usable
            raise
        finally:
            self._needs_reset = not sent
            if not usable or self._line.why():
                self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _deliver(self, letter: Letter, pass_dot: Callable[[], None]) -> Result:
        if self._connection is not None:
            try:
                if unasked := self._connection.unasked():
                    raise Stale(unasked)
                return self._converse(self._connection, letter, pass_dot, kept=True)
            except Stale as stale:
                logger.info("The kept connection had ended, connecting anew: %s", stale)
                self._connection.close()
        self._line.remaining()  # time that we used up ourselves is no outage of the server's
        self._step = "connecting"
        self._connection, self._needs_reset = Connection(self._server, self._line, self._context), False
        self._connection.open()
        return self._converse(self._connection, letter, pass_dot, kept=False)

    def _converse(self, connection: Connection, letter: Letter, pass_dot: Callable[[], None], *, kept: bool) -> Result:
        if letter.international and not connection.has_extn("smtputf8"):
            raise Unbuildable("an address has a non-ASCII local part, and the mail server does not offer SMTPUTF8")
        connection.conversations += 1
        self._ask(connection, letter, kept)
        self._step = "the message"
        connection.send(_leading_dot.sub(b"..", letter.data))
        pass_dot()
        connection.send(b".\r\n")
        return of_dot(connection.read())

    def _ask(self, connection: Connection, letter: Letter, kept: bool) -> None:
        """RSET if needed, MAIL, RCPT, DATA. Returns when the server waits for the message; raises Refused or Stale."""
        refused: Refused | None = None
        replies: dict[str, Reply] = {}
        try:
            for command, reply in self._replies(connection, self._commands(connection, letter)):
                replies[command] = reply
                if kept and command in ("RSET", "MAIL") and _is_stale(command, reply):
                    raise Stale(f"{command}: {reply}")
                if refused is None and reply.kind != (3 if command == "DATA" else 2):
                    refused = Refused(command, reply, usable=reply.kind in (4, 5))
                if refused is not None:
                    refused.usable = refused.usable and reply.kind != 0 and reply.code != CLOSING
                    if not (refused.usable and connection.has_extn("pipelining")):
                        break
        except OSError as exc:
            if refused is not None:  # the refusal stands, whatever became of the connection behind it
                refused.usable = False
            elif kept and self._step in ("RSET", "MAIL"):
                raise Stale(f"{self._step}: {type(exc).__name__}") from exc
            else:
                raise
        if refused is not None:
            self._leave_data(connection, replies, refused)
            raise refused

    def _replies(self, connection: Connection, commands: list[tuple[str, bytes]]) -> Iterator[tuple[str, Reply]]:
        pipelined = connection.has_extn("pipelining")  # RFC 2920
        self._step = commands[0][0]
        if pipelined:
            connection.send(b"".join(line for _, line in commands))
        for command, line in commands:
            self._step = command
            if not pipelined:
                connection.send(line)
            yield command, connection.read()

    def _commands(self, connection: Connection, letter: Letter) -> list[tuple[str, bytes]]:
        options = f" SIZE={len(letter.data)}" if connection.has_extn("size") else ""
        if letter.international:
            options += (" BODY=8BITMIME" if connection.has_extn("8bitmime") else "") + " SMTPUTF8"
        if letter.message.reference is not None and connection.has_extn("dsn"):
            options += f" ENVID={letter.message.reference}"  # RFC 3461 §4.4: it comes back in a bounce mail
        commands = [
            ("MAIL", f"MAIL FROM:<{self._bounce_address or letter.from_address}>{options}\r\n".encode()),
            ("RCPT", f"RCPT TO:<{letter.recipient}>\r\n".encode()),
            ("DATA", b"DATA\r\n"),
        ]
        return [("RSET", b"RSET\r\n"), *commands] if self._needs_reset else commands

    def _leave_data(self, connection: Connection, replies: dict[str, Reply], refused: Refused) -> None:
        """A pipelined DATA may have been answered 354 though the recipient was refused: RFC 2920 §3.1, a lone dot."""
        if not refused.usable or "DATA" not in replies or replies["DATA"].kind in (4, 5):
            return
        refused.usable = False
        if replies["DATA"].kind != 3 or replies["RCPT"].kind == 2:
            return  # with a recipient the lone dot would be an empty message: hang up instead
        try:
            connection.send(b".\r\n")
            refused.usable = connection.read().kind in (2, 4, 5)
        except OSError as exc:
            logger.info("Leaving DATA failed: %s", type(exc).__name__)


def check(server: SmtpServer) -> str:
    """Connect, log in and QUIT. The server's greeting; ConnectFailed with the step and the server's reply."""
    with _connected(server) as (_, greeting):
        return greeting.text


def try_sender(server: SmtpServer, address: str) -> str | None:
    """Why the server takes no mail from ``address``; None when it does. Raises ConnectFailed as ``check`` does."""
    with _connected(server) as (connection, _):
        connection.send(f"MAIL FROM:<{address}>\r\n".encode())
        reply = connection.read()
        return None if reply.kind == 2 else str(reply)


@contextmanager
def _connected(server: SmtpServer) -> Iterator[tuple[Connection, Reply]]:
    line = Line()
    line.begin(monotonic() + CHECK_SECONDS)
    connection = Connection(server, line)
    greeting = connection.open()
    try:
        yield connection, greeting
    finally:
        line.rest(monotonic() + QUIT_SECONDS)
        _quit(connection)


def _is_stale(command: str, reply: Reply) -> bool:
    """Not an answer to this mail, but the end of what came before it."""
    if reply.code in (CLOSING, *ACCOUNT) or reply.enhanced in BAD_CONNECTION or reply.kind in (0, 3):
        return True
    return command == "RSET" and reply.kind != 2


def _quit(connection: Connection) -> None:
    try:
        connection.docmd("QUIT")
    except Exception as exc:  # noqa: BLE001 - what was sent was sent, see the table
        logger.info("QUIT failed: %s", type(exc).__name__)
    finally:
        connection.close()
