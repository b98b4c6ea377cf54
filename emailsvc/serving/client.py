"""A client's socket. A thread reads the request from memory and writes the answer to memory; the loop does the rest,
but for what can be sent of the answer at once.
"""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress

from emailsvc.serving.request import Limits, Request

PIECE_BYTES = 64 * 1024
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Client:
    """``recv`` and ``sendall`` and what else gunicorn calls in a thread never wait; others are the loop's alone, but
    for ``transmit``, which whoever has the connection calls.
    """

    def __init__(self, raw: socket.socket, limits: Limits) -> None:
        raw.setblocking(False)
        self._raw = raw
        self._limits = limits
        self.request = Request(limits)
        self.answer = bytearray()
        self.arrived = 0.0  # when the request was complete, on the monotonic clock

    # In a thread

    def recv(self, size: int, _flags: int = 0) -> bytes:
        piece = self.request.take(size)
        if not piece and not self.request.ended:  # refused before it was read, or not as it announced itself
            raise ConnectionResetError(errno.ECONNRESET, "nothing more is waited for")
        return piece

    def sendall(self, data: bytes, _flags: int = 0) -> None:
        self.answer += data

    def send(self, data: bytes, _flags: int = 0) -> int:
        """gunicorn's "100 Continue": the loop has said it, while the body could still be waited for."""
        return len(data)

    def setblocking(self, _flag: bool) -> None:
        pass

    def settimeout(self, _seconds: float | None) -> None:
        pass

    def gettimeout(self) -> float:
        return 0.0

    def shutdown(self, _how: int) -> None:
        pass

    # In the loop

    def fileno(self) -> int:
        return self._raw.fileno()

    def receive(self) -> None:
        """What is there, up to a piece; an end or an error ends the request."""
        try:
            piece = self._raw.recv(PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        self.request.feed(piece)
        self.request.ended = not piece

    def encourage(self) -> None:
        """Once, a client that asks whether to send its body."""
        if self.request.expects_continue:
            self.request.expects_continue = False
            with suppress(OSError):
                self._raw.send(CONTINUE)

    def begin_next(self, read_ahead: bytes) -> None:
        """What came behind the request that was answered."""
        ended = self.request.ended
        self.request = Request(self._limits, read_ahead + self.request.rest())
        self.request.ended = ended

    def transmit(self) -> None:
        """As much of the answer as the client takes at once. Raises OSError."""
        while self.answer:
            try:
                sent = self._raw.send(self.answer)
            except BlockingIOError:
                return
            del self.answer[:sent]

    def hang_up(self) -> None:
        with suppress(OSError):
            self._raw.shutdown(socket.SHUT_WR)

    def discard(self) -> bool:
        """False at the end."""
        try:
            return bool(self._raw.recv(PIECE_BYTES))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        with suppress(OSError):
            if self.answer:  # by a reset, or the kernel would go on offering what it has of it
                self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._raw.close()
