"""How much of a request has come. A thread is given away only for one that it can read without waiting.

gunicorn's parser, in that thread, stays the judge of what a request is. This looks for its end alone, and what looks
odd counts as complete, so that the parser gets to refuse it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_CHUNK_LINE = 8192

_head_end = re.compile(rb"\r?\n\r?\n").search
_lengths = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r", re.IGNORECASE).findall
_has_chunks = re.compile(rb"\ntransfer-encoding:", re.IGNORECASE).search
_expects = re.compile(rb"[^\n]* HTTP/1\.1\r?\n.*\nexpect:[ \t]*100-continue[ \t]*\r", re.IGNORECASE | re.DOTALL).match
_chunk_size = re.compile(rb"[0-9a-f]{1,16}", re.IGNORECASE).match


@dataclass(frozen=True)
class Limits:
    """In bytes. What is larger than one of them is refused, so no more of it needs to come."""

    head: int
    body: int


class Request:
    """The bytes of one request, and of what came behind it."""

    def __init__(self, limits: Limits, begun: bytes = b"") -> None:
        self._limits = limits
        self._data = bytearray(begun)
        self._taken = 0
        self._looked = 0
        self._body_at = 0
        self._end: int | None = None  # of the request, when its head told
        self._decoded = 0  # bytes in chunks that are here
        self.expects_continue = False
        self.ended = False  # nothing more will come

    def __len__(self) -> int:
        return len(self._data)

    def feed(self, piece: bytes) -> None:
        self._data += piece

    def take(self, size: int) -> bytes:
        piece = bytes(memoryview(self._data)[self._taken : self._taken + size])
        self._taken += len(piece)
        return piece

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def is_complete(self) -> bool:
        """Whether its end is here, or will never be waited for."""
        if self.ended:
            return True
        if not self._body_at and not self._find_head():
            return len(self._data) > self._limits.head
        return len(self._data) >= self._end if self._end is not None else self._has_last_chunk()

    def _find_head(self) -> bool:
        found = _head_end(self._data, self._looked)
        if found is None:
            self._looked = max(0, len(self._data) - 3)
            return False
        head = bytes(self._data[: found.end()])
        self._body_at = self._looked = found.end()
        self.expects_continue = bool(_expects(head))
        if not _has_chunks(head):
            lengths = _lengths(head)
            announced = int(lengths[0]) if len(lengths) == 1 else 0  # of several gunicorn says what is wrong
            self._end = self._body_at + (announced if announced <= self._limits.body else 0)
        return True

    def _has_last_chunk(self) -> bool:
        while (line_end := self._data.find(b"\r\n", self._looked)) >= 0:
            size = _chunk_size(self._data, self._looked, line_end)
            if size is None:
                return True
            data_at, length = line_end + 2, int(size[0], 16)
            if length == 0:
                return self._has_trailers(data_at)
            here = min(length, len(self._data) - data_at)
            if self._decoded + here > self._limits.body:
                return True
            if data_at + length + 2 > len(self._data):
                return False
            self._decoded += length
            self._looked = data_at + length + 2
        return len(self._data) - self._looked > MAX_CHUNK_LINE

    def _has_trailers(self, at: int) -> bool:
        if self._data.startswith(b"\r\n", at) or self._data.find(b"\r\n\r\n", at) >= 0:
            return True
        return len(self._data) - at > self._limits.head
