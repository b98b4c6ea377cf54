"""A connection to the mail server up to the point where mail can be handed over: greeting, EHLO, TLS, login.

smtplib does the talking; connecting and reading replies are our own, because every wait must end when the line is cut,
and because a reply that is not quite one must never pass for one.
"""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
from dataclasses import dataclass
from functools import cache

from emailsvc.mail.line import Line
from emailsvc.settings.parsers import SmtpServer

MAX_LINE = 8192
MAX_REPLY = 65536
MAX_TEXT = 500  # characters of a reply that are kept
MALFORMED = -1

_reply_line = re.compile(rb"([0-9]{3})(?:([ -])(.*))?\r?\n", re.S).fullmatch
_enhanced = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}(?![0-9.])").match
_host_name = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,250}[A-Za-z0-9])?").fullmatch


class ConnectFailed(OSError):
    """No mail can be handed over: the text says at which step, and what went wrong."""

    def __init__(self, text: str, reply: Reply | None = None) -> None:
        super().__init__(text)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Reply:
    code: int  # MALFORMED: not a reply of RFC 5321 §4.2
    text: str  # printable and bounded
    enhanced: str | None = None  # RFC 3463

    @property
    def kind(self) -> int:
        """2, 3, 4 or 5; 0 for anything that no client can make sense of."""
        return self.code // 100 if 200 <= self.code <= 599 else 0

    def __str__(self) -> str:
        return self.text if self.code == MALFORMED else f"{self.code} {self.text}".rstrip()


def readable(raw: bytes | str) -> str:
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    return " ".join("".join(ch if ch.isprintable() else " " for ch in text[: 4 * MAX_TEXT]).split())[:MAX_TEXT]


@cache
def default_context() -> ssl.SSLContext:
    """Verifies certificate and host name. Made once: loading the authorities takes milliseconds."""
    return ssl.create_default_context()


@cache
def own_name() -> str:
    """What we call ourselves in EHLO. Never looked up, which could take as long as the conversation itself."""
    name = socket.gethostname()
    return name if _host_name(name) else "[127.0.0.1]"


class Connection(smtplib.SMTP):
    def __init__(self, server: SmtpServer, line: Line, context: ssl.SSLContext | None = None) -> None:
        super().__init__(local_hostname=own_name())
        self._server = server
        self._host = server.host  # what STARTTLS checks the certificate against
        self._line = line
        self._context = context
        self._step = "connecting"
        self._last: Reply | None = None
        self.conversations = 0  # begun, whatever became of them

    def open(self) -> Reply:
        """The server's greeting, after everything that must precede a message. Raises ConnectFailed, closed already."""
        try:
            return self._open()
        except Exception as exc:
            self.close()
            raise self._explained(exc) from exc

    def _open(self) -> Reply:
        server = self._server
        self.connect(server.host, server.port)
        greeting = self._must(220, "greeting")
        self._hello()
        if server.tls == "starttls":
            self._secure()
        if server.user is not None:
            self._log_in(server.user, server.password or "")
        return greeting

    def _hello(self) -> None:
        self._step = "EHLO"
        self.ehlo()
        self._must(250, "EHLO")

    def _secure(self) -> None:
        self._step = "STARTTLS"
        if not self.has_extn("starttls"):
            raise ConnectFailed("STARTTLS: required, but the server does not offer it")
        self.starttls(context=self._context or default_context())
        self._hello()

    def _log_in(self, user: str, password: str) -> None:
        self._step = "AUTH"
        if not self.has_extn("auth"):
            raise ConnectFailed("AUTH: a user is configured, but the server does not offer a login")
        if not (user + password).isascii():  # smtplib's own error would quote from the password
            raise ConnectFailed("AUTH: user and password must be ASCII")
        self.login(user, password)

    def _must(self, code: int, step: str) -> Reply:
        if self._last is None or self._last.code != code:
            raise ConnectFailed(f"{step}: {self._last}", self._last)
        return self._last

    def _explained(self, exc: Exception) -> ConnectFailed:
        where = f"{self._server.host}:{self._server.port}: {self._step}"
        if cut := self._line.why():
            return ConnectFailed(f"{where}: {cut.value}")
        if isinstance(exc, ConnectFailed):
            return ConnectFailed(f"{self._server.host}:{self._server.port}: {exc}", exc.reply)
        if isinstance(exc, smtplib.SMTPResponseException) or (self._last and self._last.kind in (4, 5)):
            return ConnectFailed(f"{where}: {self._last}", self._last)
        return ConnectFailed(f"{where}: {type(exc).__name__}: {readable(str(exc))}")

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        error: OSError | None = None
        addresses = self._addresses(host, port)
        for number, (family, kind, protocol, _, address) in enumerate(addresses):
            sock = socket.socket(family, kind, protocol)
            try:
                self._line.attach(sock)
                # A share of the time for each: a first address that swallows everything must not hide a good one.
                sock.settimeout(self._line.remaining() / (len(addresses) - number))
                sock.connect(address)
                return self._prepare(sock)
            except OSError as exc:
                error = exc
                sock.close()
            except BaseException:
                sock.close()
                raise
        raise error or OSError("the name has no address")

    def _addresses(self, host: str, port: int) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
        try:
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)  # type: ignore[return-value]
        except socket.gaierror:
            return self._line.call(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))  # type: ignore[return-value, arg-type]

    def _prepare(self, sock: socket.socket) -> socket.socket:
        self._line.remaining()  # a connect that was shut may look like one that succeeded
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(None)  # the line ends every wait
        if self._server.tls == "implicit":
            return (self._context or default_context()).wrap_socket(sock, server_hostname=self._server.host)
        return sock

    def getreply(self) -> tuple[int, bytes]:
        """For smtplib; ``read`` is ours."""
        reply, words = self._read()
        return reply.code, words

    def read(self) -> Reply:
        """The next reply, complete. OSError when the connection ends first."""
        return self._read()[0]

    def _read(self) -> tuple[Reply, bytes]:
        if self.file is None:
            if self.sock is None:
                raise smtplib.SMTPServerDisconnected("not connected")
            self.file = self.sock.makefile("rb")
        code, words, size = b"", [], 0
        while True:
            line: bytes = self.file.readline(MAX_LINE + 1)
            size += len(line)
            if not line.endswith(b"\n") and len(line) <= MAX_LINE:
                raise smtplib.SMTPServerDisconnected("the connection ended" + (" within a reply" if size else ""))
            parts = _reply_line(line)
            if parts is None or size > MAX_REPLY or (code and parts[1] != code):
                return self._replied(Reply(MALFORMED, f"not an SMTP reply: {readable(line)}")), line
            code = parts[1]
            words.append((parts[3] or b"").strip())
            if parts[2] != b"-":
                break
        text = readable(b" ".join(words))
        enhanced = _enhanced(text)
        return self._replied(Reply(int(code), text, enhanced.group() if enhanced else None)), b"\n".join(words)

    def unasked(self) -> str | None:
        """What the server has done while nothing was asked of it: its last words, or its end. None when it is quiet.

        Reading decides, not ``select``: over TLS a readable socket may hold no more than a session ticket.
        """
        if self.sock is None or self.file is None:
            return "closed"
        said = b""
        self.sock.setblocking(False)
        try:
            said = self.file.read(1)  # None: nothing yet; empty: the end
            if said:
                said += self.file.readline(MAX_LINE)
        except ssl.SSLWantReadError:
            return readable(said) if said else None
        except OSError as exc:
            return type(exc).__name__
        finally:
            self.sock.settimeout(None)
        return None if said is None else readable(said) or "the connection ended"

    def _replied(self, reply: Reply) -> Reply:
        self._last = reply
        return reply

    def close(self) -> None:
        self._line.release()
        super().close()
