"""Logging: one line per event, key=value for people or JSON for machines. Bodies, secrets and whole addresses never."""

from __future__ import annotations

import json
import logging
import re
import sys
from contextvars import ContextVar
from typing import Any

from emailsvc.clock import isoformat, utcnow
from emailsvc.settings.config import Config

EVENTS = {
    "accepted": ("INFO", "a webhook was stored; with `duplicate_of`, it would have been absorbed (`DEDUPE_MODE=observe`)"),
    "absorbed": ("INFO", "a webhook that is the duplicate of another id, `duplicate_of`; `same_content` tells whether of its content, too"),
    "duplicate": ("INFO", "a webhook with a known id and the same content"),
    "mismatch": ("INFO", "a webhook with a known id and other content"),
    "webhook_refused": ("WARNING", "a webhook, or one e-mail of a batch, was answered 4xx; `code` and `field` say why (401 and 403: `access_denied`)"),
    "sent": ("INFO", "the mail server took it"),
    "deferred": ("WARNING", "it will be tried again, in `retry_in` seconds"),
    "dead_lettered": ("WARNING", "given up; see `reason` and `text`"),
    "released": ("INFO", "given back untouched: an outage, or a shutdown"),
    "stale_outcome": ("WARNING", "a late worker's outcome was not recorded, because the sweep had decided already"),
    "worker_lost": ("WARNING", "a claim expired with this e-mail in hand"),
    "swept": ("INFO, DEBUG", "what a sweep repaired (DEBUG when nothing)"),
    "cancelled": ("INFO, WARNING", "an operator cancelled it (WARNING: an erased e-mail that was in hand)"),
    "reported": ("INFO, WARNING", "a report about an e-mail was noted: `report`, `kind`, `code` and `text` (WARNING: bounced or complained)"),
    "reports_unmatched": ("INFO", "so many reports of one request (`count`) are of no e-mail here"),
    "subscription_to_confirm": ("WARNING", "a provider reports nothing before somebody opens this `url`; the service opens none"),
    "settled": ("INFO", "a report proved that the mail server had taken it, which nobody was sure of: it is `sent`"),
    "made_due": ("INFO", "an operator sends it now, or so many `emails`"),
    "viewed": ("INFO", "an operator looked at its content"),
    "replayed": ("INFO", "an operator sends it again"),
    "delivered": ("INFO", "an operator marked it as delivered"),
    "discarded": ("INFO", "an operator discarded it"),
    "stopped": ("INFO", "an operator stopped an action, with so many dead letters `left`"),
    "paused": ("WARNING", "an operator paused delivery"),
    "resumed": ("WARNING", "an operator resumed delivery"),
    "outage_began": ("WARNING", "`reason` and `outcome` (`rejected`: a run of refusals) say why, `waiting` how many e-mails are due (counted up to 5,000)"),
    "outage_ended": ("WARNING", "`by` a `probe` or an `operator`, after so many `seconds`"),
    "access_denied": ("WARNING", "a request was answered 401 or 403; the token is masked"),
    "queue_unavailable": ("WARNING", "Redis is away: wake-ups are skipped"),
    "message_unreadable": ("WARNING", "a message in the wake-up queue is none of this service: passed over"),
    "lock_unavailable": ("WARNING", "Redis is away: a lock was not taken"),
    "lock_not_released": ("WARNING", "Redis is away: a lock stays until it times out"),
    "database_away": ("WARNING, ERROR", "the database does not answer a worker, or takes no counts of refused webhooks (ERROR: at startup)"),
    "database_unavailable": ("ERROR", "a request was answered 503, because the database does not answer"),
    "database_hangs": ("ERROR", "the database takes connections and does not answer"),
    "database_encoding": ("WARNING", "a database in use is not UTF8: an e-mail that it cannot hold is answered 500; an empty one is refused"),
    "heartbeat_failed": ("WARNING", "a worker could not tell the database that it lives"),
    "deregister_failed": ("WARNING", "a worker could not tell the database that it leaves"),
    "release_failed": ("WARNING", "a worker could not give back what it had not begun"),
    "recovered": ("WARNING", "a worker was killed; so many e-mails that it provably had not handed over go out again"),
    "recovery_failed": ("WARNING", "notes in `instance/notes/` could not be used: killed workers' e-mails wait for their lease"),
    "notes_unavailable": ("WARNING", "`instance/notes/` cannot be written: a killed worker's e-mails will wait for their lease"),
    "smtp_not_configured": ("WARNING", "`SMTP_URL` is not set: e-mails become files"),
    "unknown_setting": ("WARNING", "a variable whose name is almost that of a setting; `what` says which"),
    "repair_failed": ("ERROR", "a `step` of a sweep failed, for example on a row that somebody keeps locked; the others were made, and the next sweep tries again"),
    "counters_corrected": ("ERROR", "an hourly count of the rows did not agree with the counters, which were corrected by so much; after a deploy it may be what processes of the release before cancelled"),
    "transport_raised": ("ERROR", "a fault of the service: please report it"),
    "record_refused": ("ERROR", "the database refused an outcome's values; it was recorded without the reply. Please report it"),
    "internal_error": ("ERROR", "a fault of the service: please report it"),
    "invariant_broken": ("ERROR", "a fault of the service: please report it"),
}  # fmt: skip
"""Every event by its name, with its levels and meaning; the README of the commands is written from it."""

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request at hand, and in each of its lines."""


def mask(address: str | None) -> str:
    """``a…@example.com``: enough to recognise a domain's trouble, not a person."""
    local, at, domain = (address or "").rpartition("@")
    return f"{local[:1]}…@{domain}" if at else "…"


def without_addresses(text: str) -> str:
    """A mail server's reply, which may quote the recipient, with every address masked."""
    return re.sub(r"[^\s<>()\[\]\"',;:]+@[^\s<>()\[\]\"',;:]+", lambda found: mask(found[0]), text)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", {})
    return {key: value for key, value in {**fields, "request_id": request_id.get()}.items() if value is not None}


class TextFormatter(logging.Formatter):
    """``time LEVEL event key=value …``; values with blanks or control characters are quoted, so a line stays a line."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = [f"{key}={self._value(value)}" for key, value in _fields(record).items()]
        message = self._line(record.getMessage())
        line = " ".join([isoformat(utcnow()), f"{record.levelname:7}", message, *pairs])
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
        if text.isprintable():
            return text
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
    # What no format shows is not looked up for every line (the logging manual's "Optimization"). gunicorn's shows the pid.
    logging._srcfile = None
    logging.logThreads = logging.logMultiprocessing = False
    # A line per popped task says nothing about an e-mail.
    for noisy in ("huey", "huey.consumer", "alembic", "werkzeug"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
