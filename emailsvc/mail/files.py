"""Mail as .eml files in a folder, for a laptop without a mail server. Every send makes a file of its own."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from emailsvc.clock import utcnow
from emailsvc.mail import Message, Outcome, Result
from emailsvc.mail.line import LineCut
from emailsvc.mail.message import Letter
from emailsvc.mail.transport import Transport


class FileTransport(Transport):
    """A file appears whole and on the disk, or not at all; the rename is the final dot."""

    def __init__(self, folder: Path, *, idempotency_header: str | None = None) -> None:
        super().__init__(idempotency_header=idempotency_header)
        self._folder = folder

    def _hand_over(self, letter: Letter, pass_dot: Callable[[], None]) -> Result:
        self._step = "writing the file"
        name = _file_name(letter.message, utcnow())
        temporary = self._folder / f".{name}.part"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _write_through(temporary, letter.data)
            pass_dot()
            temporary.rename(self._folder / name)
        except LineCut:
            raise
        except OSError as exc:  # disk full, no permission: not about this message, and nothing was written
            return Result(Outcome.OUTAGE, f"cannot write to {self._folder}: {exc.strerror or type(exc).__name__}")
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        try:
            _sync_folder(self._folder)
        except OSError as exc:
            return Result(Outcome.UNCERTAIN, f"{name} may not outlive a power failure: {exc.strerror}")
        return Result(Outcome.SENT, f"written to {name}")


def _file_name(message: Message, now: datetime) -> str:
    """Sorted by time, recognisable, and never used twice: a second copy must be seen, not overwrite the first."""
    recognisable = re.sub(r"[^A-Za-z0-9._-]+", "_", message.email_id)[:80].strip(".") or "mail"
    return f"{now:%Y%m%dT%H%M%S.%f}-{recognisable}-{secrets.token_hex(4)}.eml"


def _write_through(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
