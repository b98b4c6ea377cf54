"""Configuration as one table: name, parser, default, help. `python -m tests.documents` writes the documents from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from emailsvc.errors import ConfigurationError
from emailsvc.settings import parsers
from emailsvc.vocabulary import OnUncertain


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    parse: Callable[[str], Any]
    default: str  # as it would stand in the environment; "" means none
    help: str


SETTINGS = (
    Setting("DATABASE_URL", parsers.database_url, "", "`postgres://…`, `postgresql://…` or `sqlite:////folder/file.db`; unset: SQLite in `instance/`"),
    Setting("REDIS_URL", parsers.redis_url, "", "`redis://…` or `rediss://…` for the wake-up queue and locks; unset: the queue is an SQLite file in `instance/`, for the processes of one machine"),
    Setting("SMTP_URL", parsers.smtp_url, "", "`smtp://user:password@host:587` (STARTTLS is required, unless the host is loopback or the URL ends in `?starttls=off`) or `smtps://…:465`; percent-encode `@`, `:` and `/` in a password; unset: e-mails become files in `instance/outbox/`"),
    Setting("MAIL_FROM", parsers.address, "no-reply@localhost", "From address of e-mails without `from`"),
    Setting("MAIL_FROM_DOMAINS", parsers.domains, "", "further domains that `from` may use, separated by blanks or commas"),
    Setting("RETRY_DELAY_SECONDS", parsers.number(0), "5", "delay before the first retry; it doubles with each further one, ±20 %"),
    Setting("MAX_RETRY_ATTEMPTS", parsers.whole(0, 1000), "3", "retries after the first attempt"),
    Setting("RETRY_MAX_DELAY_SECONDS", parsers.number(0), "3600", "the longest such delay"),
    Setting("ON_UNCERTAIN", parsers.choice(*OnUncertain), "", "`hold` or `retry`, for e-mails without `on_uncertain`; unset: `hold`, or `retry` once `IDEMPOTENCY_HEADER` is set"),
    Setting("ON_MISMATCH", parsers.choice("reject", "accept"), "reject", "answer to a known id with other content: `reject` (422) or `accept` (200)"),
    Setting("IDEMPOTENCY_HEADER", parsers.header_name, "", "header that carries the `email_id` to a provider that de-duplicates, such as `Resend-Idempotency-Key`"),
    Setting("SMTP_TIMEOUT_SECONDS", parsers.number(0.1, 3600), "30", "total time of a conversation up to the final dot; a large e-mail gets a second more for each 64 KiB on the wire, where base64 makes 9.6 MB of a 7 MB attachment"),
    Setting("SMTP_REPLY_TIMEOUT_SECONDS", parsers.number(0.1, 3600), "60", "time for the reply to the final dot"),
    Setting("OUTAGE_LIMIT_SECONDS", parsers.number(1), "86400", "how long an outage may hold up an e-mail; then it becomes a dead letter (`unreachable`)"),
    Setting("BATCH_SIZE", parsers.whole(1, 1000), "10", "e-mails per claim"),
    Setting("LEASE_SECONDS", parsers.number(1), "120", "how long a claim lasts; more than the two timeouts above together"),
    Setting("SWEEP_SECONDS", parsers.number(1, 3600), "60", "how often repairs run"),
    Setting("WORKER_THREADS", parsers.whole(1, 64), "4", "threads per worker process, each with a connection to the mail server"),
    Setting("RATE_LIMIT_PER_SECOND", parsers.number(0.001, 1e6), "", "most e-mails started per second, over all workers"),
    Setting("DELIVERY_PAUSED", parsers.flag, "0", "`1` pauses delivery when a process starts; set it for a restored or copied database"),
    Setting("WEBHOOK_SECRETS", parsers.secret_list, "", "secrets of the clients' signatures, separated by blanks or commas; `flask secret` prints a new one"),
    Setting("API_TOKENS", parsers.token_list, "", "bearer tokens of 16 or more ASCII characters, separated by blanks or commas"),
    Setting("MAX_REQUEST_BYTES", parsers.whole(1024), "10485760", "the largest request; a larger one is answered 413"),
    Setting("BODY_RETENTION_SECONDS", parsers.number(0, 3e9), "604800", "content is removed this long after the e-mail was sent, cancelled or discarded"),
    Setting("EMAIL_RETENTION_DAYS", parsers.number(0, 36500), "400", "the whole row is deleted this long after that; de-duplication ends with it"),
    Setting("READY_MAX_AGE_SECONDS", parsers.number(1), "300", "`/readyz` fails when an e-mail has been due for longer"),
    Setting("LOG_FORMAT", parsers.choice("text", "json"), "text", "`text`, or `json` for one JSON object per line"),
    Setting("LOG_LEVEL", parsers.log_level, "INFO", "`DEBUG`, `INFO`, `WARNING` or `ERROR`"),
    Setting("PORT", parsers.whole(1, 65535), "", "listen on this port of all interfaces; unset: 127.0.0.1:8000 (`flask start --port` stays on loopback)"),
    Setting("WEB_CONCURRENCY", parsers.whole(1, 1000), "", "web processes; unset: one"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Config:
    """Every setting, parsed. Durations are seconds unless the name says otherwise."""

    database_url: str = field(repr=False)
    redis_url: str | None = field(repr=False)
    smtp_url: parsers.SmtpServer | None
    mail_from: str
    mail_from_domains: tuple[str, ...]
    retry_delay_seconds: float
    max_retry_attempts: int
    retry_max_delay_seconds: float
    on_uncertain: str
    on_mismatch: str
    idempotency_header: str | None
    smtp_timeout_seconds: float
    smtp_reply_timeout_seconds: float
    outage_limit_seconds: float
    batch_size: int
    lease_seconds: float
    sweep_seconds: float
    worker_threads: int
    rate_limit_per_second: float | None
    delivery_paused: bool
    webhook_secrets: tuple[str, ...] = field(repr=False)
    api_tokens: tuple[str, ...] = field(repr=False)
    max_request_bytes: int
    body_retention_seconds: float
    email_retention_days: float
    ready_max_age_seconds: float
    log_format: str
    log_level: str
    port: int | None
    web_concurrency: int | None
    instance: Path
    misspelt: tuple[str, ...]

    @property
    def from_domains(self) -> frozenset[str]:
        """The domains that a client's `from` may use, in lower case."""
        return frozenset({self.mail_from.rpartition("@")[2].lower(), *self.mail_from_domains})

    @property
    def is_sqlite(self) -> bool:
        return self.database_url.startswith("sqlite")


_SECRET = {"DATABASE_URL", "REDIS_URL", "SMTP_URL", "WEBHOOK_SECRETS", "API_TOKENS"}
SIMILAR = 0.85
"""SMPT_URL is 0.875 like SMTP_URL; REDIS_TLS_URL, which some platforms set, only 0.82 like REDIS_URL."""

_LISTS = {"MAIL_FROM_DOMAINS", "WEBHOOK_SECRETS", "API_TOKENS"}


def load(environ: Mapping[str, str], instance: Path) -> Config:
    """Parse the whole table. Raises ConfigurationError with one line that names variable, value and what is allowed."""
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        text = environ.get(setting.name, "").strip() or setting.default
        try:
            values[setting.name.lower()] = setting.parse(text) if text else (() if setting.name in _LISTS else None)
        except parsers.Bad as exc:
            shown = "(not shown)" if setting.name in _SECRET else repr(text)
            raise ConfigurationError(f"{setting.name}={shown}: expected {exc}.") from exc
    values["database_url"] = values["database_url"] or f"sqlite:///{instance / 'emailsvc.db'}"
    values["on_uncertain"] = values["on_uncertain"] or (
        OnUncertain.RETRY if values["idempotency_header"] else OnUncertain.HOLD
    )
    config = Config(instance=instance, misspelt=tuple(_misspelt(environ)), **values)
    _check_together(config, on_dyno="DYNO" in environ)
    return config


def _misspelt(environ: Mapping[str, str]) -> Iterator[str]:
    """Names that are almost those of settings. Beside the setting itself such a name is meant, as DATABASE_URL_OLD is."""
    unset = [setting.name for setting in SETTINGS if not environ.get(setting.name, "").strip()]
    for name in environ.keys() - {setting.name for setting in SETTINGS}:
        for close in get_close_matches(name.upper(), unset, 1, SIMILAR):
            yield f"{name} is not a setting: did you mean {close}?"


def _check_together(config: Config, *, on_dyno: bool) -> None:
    conversation = config.smtp_timeout_seconds + config.smtp_reply_timeout_seconds
    if config.lease_seconds <= conversation:
        raise ConfigurationError(
            f"LEASE_SECONDS={config.lease_seconds:g}: expected more than {conversation:g}, "
            "the sum of SMTP_TIMEOUT_SECONDS and SMTP_REPLY_TIMEOUT_SECONDS, because a lease must cover one conversation."
        )
    if on_dyno and config.is_sqlite:
        raise ConfigurationError(
            "DATABASE_URL must name a PostgreSQL database: on a dyno an SQLite file is lost at each restart."
        )
    if on_dyno and config.smtp_url is None:
        raise ConfigurationError("SMTP_URL is not set: on a dyno e-mails written to files are lost at each restart.")
    if on_dyno and config.redis_url is None:
        raise ConfigurationError(
            "REDIS_URL is not set: on a dyno web and worker share no disk, so wake-ups would be lost."
        )


def from_environment(instance: Path, dotenv: Path | None = None) -> Config:
    """The environment over `.env` (beside the instance folder unless ``dotenv`` says where)."""
    path = dotenv if dotenv is not None else instance.parent / ".env"
    return load({**(_read(path) if path.exists() else {}), **os.environ}, instance)


def _read(path: Path) -> dict[str, str]:
    """What a `.env` sets. Raises ConfigurationError for what dotenv would leave out with a warning."""
    try:
        with path.open(encoding="utf-8") as file:
            wrong = [binding.original for binding in parse_stream(file) if binding.error]
    except UnicodeDecodeError as exc:
        raise ConfigurationError(f"{path} is not UTF-8 (byte {exc.start}).") from exc
    if wrong:
        before = wrong[0].string[
            : -len(wrong[0].string.lstrip())
        ]  # blank lines, which dotenv counts as the statement's
        line = wrong[0].line + before.count("\n")
        raise ConfigurationError(f"{path}, line {line}: expected NAME=value, with every quote closed.")
    return {key: value for key, value in dotenv_values(path).items() if value is not None}


assert [s.name.lower() for s in SETTINGS] + ["instance", "misspelt"] == [f.name for f in fields(Config)]  # noqa: S101 - two lists, kept in step
