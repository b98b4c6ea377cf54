"""Mail as .eml files in a folder, for a laptop without a mail server. Every send makes a file of its own."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from emailsvc.clock import monotonic, utcnow
from emailsvc.mail import Mail, Outcome, Result
from emailsvc.mail.message import build, needs_smtputf8


class FileTransport:
    """A file appears whole and on the disk, or not at all; the rename is the final dot."""

    def __init__(self, folder: Path, *, idempotency_header: str | None = None) -> None:
        self._folder = folder
        self._idempotency_header = idempotency_header
        self._stopped = False

    def send(
        self, mail: Mail, *, timeout: float, reply_timeout: float, before_dot: Callable[[], bool] = lambda: True
    ) -> Result:
        deadline = monotonic() + timeout
        if self._stopped:
            return Result(Outcome.CUT, "shutting down; nothing was written")
        try:
            header, international = self._idempotency_header, needs_smtputf8(mail)
            data = build(mail, idempotency_header=header, smtputf8=international)
            name = _file_name(mail, utcnow())
            return self._write(name, data, lambda: before_dot() and monotonic() < deadline and not self._stopped)
        except OSError as exc:  # disk full, no permission, no folder: nothing about this mail, and nothing was written
            return Result(Outcome.OUTAGE, f"cannot write to {self._folder}: {exc.strerror or type(exc).__name__}")
        except Exception as exc:  # noqa: BLE001 - as the SMTP transport: whatever else precedes the dot is the mail's fault
            return Result(Outcome.REJECTED, f"building the message: {type(exc).__name__}: {exc}")

    def stop(self, grace: float) -> None:
        self._stopped = True

    def close(self) -> None:
        pass

    def _write(self, name: str, data: bytes, before_rename: Callable[[], bool]) -> Result:
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary, final = self._folder / f".{name}.part", self._folder / name
        try:
            _write_through(temporary, data)
            if not before_rename():
                cut = Result(Outcome.CUT, "shutting down; nothing was written")
                return cut if self._stopped else Result(Outcome.DEFERRED, "the deadline passed before the rename")
            temporary.rename(final)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        try:
            _sync_folder(self._folder)
        except OSError as exc:
            return Result(Outcome.UNCERTAIN, f"{name} may not outlive a power failure: {exc.strerror}")
        return Result(Outcome.SENT, f"written to {name}")


def _file_name(mail: Mail, now: datetime) -> str:
    """Sorted by time, recognisable, and never used twice: a second copy must be seen, not overwrite the first."""
    recognisable = re.sub(r"[^A-Za-z0-9._-]+", "_", mail.email_id)[:80].strip(".") or "mail"
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
