"""Logging: one line per event, key=value for people or JSON for machines. Bodies, secrets and whole addresses never."""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

from emailsvc.clock import isoformat, utcnow
from emailsvc.settings.config import Config


def mask(address: str | None) -> str:
    """``a…@example.com``: enough to recognise a domain's trouble, not a person."""
    local, at, domain = (address or "").rpartition("@")
    return f"{local[:1]}…@{domain}" if at else "…"


def without_addresses(text: str) -> str:
    """A mail server's words, which like to quote the recipient, with every address masked."""
    return re.sub(r"[^\s<>()\[\]\"',;:]+@[^\s<>()\[\]\"',;:]+", lambda found: mask(found[0]), text)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", {})
    return {key: value for key, value in fields.items() if value is not None}


class TextFormatter(logging.Formatter):
    """``time LEVEL event key=value …``; values with blanks or control characters are quoted, so a line stays a line."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = [f"{key}={self._value(value)}" for key, value in _fields(record).items()]
        message = self._line(record.getMessage())
        line = " ".join([isoformat(utcnow()) or "", f"{record.levelname:7}", message, *pairs])
        if record.exc_info:
            # Indented, so that nothing an exception quotes can look like an event of its own.
            trace = self.formatException(record.exc_info).splitlines()
            line += "".join(f"\n    {self._line(part)}" for part in trace)
        return line

    @staticmethod
    def _value(value: Any) -> str:
        text = str(value)
        plain = text.isprintable() and text and " " not in text and '"' not in text
        return text if plain else json.dumps(text, ensure_ascii=True)

    @staticmethod
    def _line(text: str) -> str:
        return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "at": isoformat(utcnow()),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure(config: Config) -> None:
    """Send everything to standard error in one format. Called once by each process's entry point."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if config.log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.log_level)
    # A line per popped task says nothing about an e-mail.
    for noisy in ("huey", "huey.consumer", "alembic", "werkzeug"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
