"""What a worker had in hand when it was killed, in a file of its own that outlives it, though not the machine.

A killed worker's lowest unfinished e-mail is `uncertain` unless somebody can prove that its dot was never sent. The
note is that proof: written before each step, under a file lock that only the end of the process gives up. It can only
lower the number of false alarms: no file, a torn line, a held lock, another machine or boot, and nothing is known.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LINE_BYTES = 128  # so that none lies across two pages
LINES = 256
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_line = re.compile(rb"([0-9a-f-]{36}) ([0-9a-f]{32}) ([0-9]{19}) ([01]) ([0-9a-f]{8})\n\0*").fullmatch


@dataclass(frozen=True, slots=True)
class Noted:
    """The last step of one thread: a claim was about to be made, or ``row_id`` was begun, or its dot was next."""

    token: str
    row_id: int  # 0 before the first
    dot_may_be_sent: bool


class Note:
    """One thread's line."""

    def __init__(self, file: int, offset: int, boot: str) -> None:
        self._file, self._offset, self._boot = file, offset, boot
        self._token, self._row_id = "", 0

    def claims(self, token: str) -> None:
        """Before the claim is sent: whatever it takes is not begun."""
        self._token, self._row_id = token, 0
        with suppress(OSError):  # the line before stays, about mail that is finished: it proves nothing of this one
            self._write(0)

    def begins(self, row_id: int) -> None:
        self._row_id = row_id
        with suppress(OSError):
            self._write(0)

    def passes_dot(self) -> None:
        """Before the first byte of the dot, which must not be sent when this raises OSError.

        Where it cannot be written (a full disk that copies what is overwritten), no line of this process may stand.
        """
        try:
            self._write(1)
        except OSError:
            os.ftruncate(self._file, 0)

    def _write(self, side: int) -> None:
        text = f"{self._boot} {self._token} {self._row_id:019} {side} ".encode()
        os.pwrite(self._file, b"%b%08x\n" % (text, zlib.crc32(text)), self._offset)


class Unnoted(Note):
    """For a thread without a line."""

    def __init__(self) -> None:
        super().__init__(-1, 0, "")

    def _write(self, side: int) -> None:
        pass


class Notebook:
    """The lines of one process. Raises OSError where such a file cannot be kept."""

    def __init__(self, folder: Path) -> None:
        self._boot = BOOT_ID.read_text().strip()
        folder.mkdir(exist_ok=True)
        path = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)  # for as long as this process lives
        os.posix_fallocate(self._file, 0, LINES * LINE_BYTES)  # a full disk is met now, and not at a dot
        self._lines = iter(range(LINES))
        self._guard = threading.Lock()

    def note(self) -> Note:
        with self._guard:
            number = next(self._lines, None)
        return Unnoted() if number is None else Note(self._file, number * LINE_BYTES, self._boot)


def left_behind(folder: Path) -> Iterator[tuple[Path, list[Noted]]]:
    """The notebooks of dead processes with what can be believed of them. Raises OSError."""
    boot = BOOT_ID.read_text().strip() if folder.exists() else ""
    for path in sorted(folder.glob("*")):
        try:
            with open(path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                content = file.read(LINES * LINE_BYTES)
        except OSError:
            continue  # its worker lives, however long it has been silent; or the file is gone, or another account's
        lines = [content[start : start + LINE_BYTES] for start in range(0, len(content), LINE_BYTES)]
        yield path, [noted for line in lines if (noted := _parse(line, boot))]


def forget(path: Path, older_than: float) -> None:
    """Remove a dead process's notebook when nothing was written for so many seconds: a claim may yet be on its way."""
    with suppress(FileNotFoundError):  # another worker looked, too
        if time.time() - path.stat().st_mtime > older_than:
            path.unlink()


def _parse(line: bytes, boot: str) -> Noted | None:
    found = _line(line)
    if found is None or found[1].decode() != boot or int(found[5], 16) != zlib.crc32(line[: found.start(5)]):
        return None
    return Noted(found[2].decode(), int(found[3]), found[4] == b"1")
