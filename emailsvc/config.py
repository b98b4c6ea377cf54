"""Configuration as one table: name, parser, default, help. README and .env.example are held against it by a test."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dotenv import dotenv_values

from emailsvc.errors import ConfigurationError
from emailsvc.signing import decode_secret

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


class _Bad(ValueError):
    """What is allowed, as the rest of the sentence «NAME=value: expected …»."""


@dataclass(frozen=True, slots=True)
class SmtpServer:
    host: str
    port: int
    tls: str  # "implicit", "starttls" (required) or "none"
    user: str | None = None
    password: str | None = field(default=None, repr=False)


def _number(low: float, high: float = 1e9) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise _Bad(f"a number from {low:g} to {high:g}")
        return value

    return parse


def _whole(low: int, high: int = 10**9) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise _Bad(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise _Bad(" or ".join(allowed))
        return text

    return parse


def _flag(text: str) -> bool:
    value = {
        "1": True,
        "true": True,
        "yes": True,
        "on": True,
        "0": False,
        "false": False,
        "no": False,
        "off": False,
    }.get(text.lower())
    if value is None:
        raise _Bad("1 or 0")
    return value


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.split(r"[\s,]+", text.strip()))


def _token_list(text: str) -> tuple[str, ...]:
    tokens = _words(text)
    if any(len(token) < 16 or not token.isascii() for token in tokens):
        raise _Bad("ASCII tokens of 16 or more characters, separated by blanks or commas")
    return tokens


def _secret_list(text: str) -> tuple[str, ...]:
    secrets = _words(text)
    for secret in secrets:
        try:
            decode_secret(secret)
        except ValueError as exc:
            raise _Bad(
                "secrets as `flask secret` makes them (whsec_ and base64), separated by blanks or commas"
            ) from exc
    return secrets


def _address(text: str) -> str:
    if not re.fullmatch(r"[^\s@<>,;:\"()\[\]\\]+@[^\s@<>,;:\"()\[\]\\]+", text):
        raise _Bad("one e-mail address, such as billing@example.com")
    return text


def _domains(text: str) -> tuple[str, ...]:
    domains = tuple(word.lower().rstrip(".") for word in _words(text))
    if any("@" in domain or not domain for domain in domains):
        raise _Bad("domain names, separated by blanks or commas")
    return domains


def _database_url(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if separator and scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        return f"postgresql+psycopg://{rest}"
    if separator and scheme == "sqlite":
        return text
    raise _Bad("a URL beginning with postgres://, postgresql:// or sqlite:///")


def _redis_url(text: str) -> str:
    if not text.startswith(("redis://", "rediss://", "unix://")):
        raise _Bad("a URL beginning with redis:// or rediss://")
    return text


def _smtp_url(text: str) -> SmtpServer:
    expected = "a URL like smtp://user:password@host:587 or smtps://user:password@host:465 (percent-encode @ : / in the password)"
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as exc:
        raise _Bad(expected) from exc
    if url.scheme not in ("smtp", "smtps") or not url.hostname or url.path not in ("", "/"):
        raise _Bad(expected)
    if url.query not in ("", "starttls=off"):
        raise _Bad(expected + "; the only option is ?starttls=off")
    if url.scheme == "smtps":
        tls, default_port = "implicit", 465
    elif url.query or url.hostname in LOOPBACK_HOSTS:
        tls, default_port = "none", 25 if url.hostname in LOOPBACK_HOSTS else 587
    else:
        tls, default_port = "starttls", 587
    user = unquote(url.username) if url.username else None
    password = unquote(url.password) if url.password else None
    return SmtpServer(url.hostname, port or default_port, tls, user, password)


def _header_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", text):
        raise _Bad("a header name of letters, digits and hyphens")
    return text


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    parse: Callable[[str], Any]
    default: str  # as it would stand in the environment; "" means none
    help: str


SETTINGS = (
    Setting("DATABASE_URL", _database_url, "", "SQLite in instance/ without it; postgres:// and postgresql:// both work"),
    Setting("REDIS_URL", _redis_url, "", "queue and locks; without it Huey uses its own SQLite file in instance/"),
    Setting("SMTP_URL", _smtp_url, "", "smtp://user:pass@host:587 (STARTTLS required unless loopback or ?starttls=off) or smtps://…:465; without it mails become .eml files in instance/outbox/"),
    Setting("MAIL_FROM", _address, "no-reply@localhost", "default sender"),
    Setting("MAIL_FROM_DOMAINS", _domains, "", "further domains that `from` may use, beside that of MAIL_FROM"),
    Setting("RETRY_DELAY_SECONDS", _number(0), "5", "delay before the first retry; doubles with each further one, ±20 %"),
    Setting("MAX_RETRY_ATTEMPTS", _whole(0, 1000), "3", "retries after the first attempt"),
    Setting("RETRY_MAX_DELAY_SECONDS", _number(0), "3600", "cap on that delay"),
    Setting("ON_UNCERTAIN", _choice("hold", "retry"), "", "what to do when nobody knows whether the server took a mail: hold (default) or retry (default once IDEMPOTENCY_HEADER is set)"),
    Setting("ON_MISMATCH", _choice("reject", "accept"), "reject", "answer to a known id with another payload: reject (422) or accept (200)"),
    Setting("IDEMPOTENCY_HEADER", _header_name, "", "header that carries the id to a provider that de-duplicates, e.g. Resend-Idempotency-Key"),
    Setting("SMTP_TIMEOUT_SECONDS", _number(0.1, 3600), "30", "total time for a conversation up to the final dot"),
    Setting("SMTP_REPLY_TIMEOUT_SECONDS", _number(0.1, 3600), "60", "time for the server's reply to the final dot"),
    Setting("OUTAGE_LIMIT_SECONDS", _number(1), "86400", "how long a mail may be held up by an outage before it is dead-lettered as unreachable"),
    Setting("BATCH_SIZE", _whole(1, 1000), "10", "e-mails per claim"),
    Setting("LEASE_SECONDS", _number(1), "120", "how long a claim lasts; must cover one conversation"),
    Setting("SWEEP_SECONDS", _number(1, 3600), "60", "how often repairs run"),
    Setting("WORKER_THREADS", _whole(1, 64), "4", "threads per worker process"),
    Setting("RATE_LIMIT_PER_SECOND", _number(0.001, 1e6), "", "cap on mails started per second, over all workers"),
    Setting("DELIVERY_PAUSED", _flag, "0", "1 starts with delivery paused: set it for a restored or copied database"),
    Setting("WEBHOOK_SECRETS", _secret_list, "", "Standard Webhooks secrets; several, so that they can be rotated"),
    Setting("API_TOKENS", _token_list, "", "bearer tokens; several, so that they can be rotated"),
    Setting("MAX_REQUEST_BYTES", _whole(1024), "10485760", "largest request; 413 above"),
    Setting("BODY_RETENTION_SECONDS", _number(0), "604800", "content is scrubbed this long after the mail was sent, cancelled or discarded"),
    Setting("EMAIL_RETENTION_DAYS", _number(0), "400", "the row itself (id, fingerprint, times) is purged this long after it is final; de-duplication ends with it"),
    Setting("READY_MAX_AGE_SECONDS", _number(1), "300", "/readyz fails when the oldest due mail is older"),
    Setting("LOG_FORMAT", _choice("text", "json"), "text", "json writes one JSON object a line"),
    Setting("LOG_LEVEL", _choice("DEBUG", "INFO", "WARNING", "ERROR"), "INFO", "least level that is logged"),
    Setting("PORT", _whole(0, 65535), "", "as the platform sets it; without it only loopback is bound, port 8000"),
    Setting("WEB_CONCURRENCY", _whole(1, 1000), "", "web processes, as the platform sets it"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Config:
    """Every setting, parsed. Durations are seconds unless the name says otherwise."""

    database_url: str = field(repr=False)
    redis_url: str | None = field(repr=False)
    smtp_url: SmtpServer | None
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

    @property
    def from_domains(self) -> frozenset[str]:
        """The domains that a sender's `from` may use, in lower case."""
        return frozenset({self.mail_from.rpartition("@")[2].lower(), *self.mail_from_domains})

    @property
    def is_sqlite(self) -> bool:
        return self.database_url.startswith("sqlite")


_SECRET = {"DATABASE_URL", "REDIS_URL", "SMTP_URL", "WEBHOOK_SECRETS", "API_TOKENS"}
_LISTS = {"MAIL_FROM_DOMAINS", "WEBHOOK_SECRETS", "API_TOKENS"}


def load(environ: Mapping[str, str], instance: Path) -> Config:
    """Parse the whole table. Raises ConfigurationError with one line that names variable, value and what is allowed."""
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        text = environ.get(setting.name, "").strip() or setting.default
        try:
            values[setting.name.lower()] = setting.parse(text) if text else (() if setting.name in _LISTS else None)
        except _Bad as exc:
            shown = "(not shown)" if setting.name in _SECRET else repr(text)
            raise ConfigurationError(f"{setting.name}={shown}: expected {exc}.") from exc
    values["database_url"] = values["database_url"] or f"sqlite:///{instance / 'emailsvc.db'}"
    values["on_uncertain"] = values["on_uncertain"] or ("retry" if values["idempotency_header"] else "hold")
    config = Config(instance=instance, **values)
    _check_together(config, on_dyno="DYNO" in environ)
    return config


def _check_together(config: Config, *, on_dyno: bool) -> None:
    conversation = config.smtp_timeout_seconds + config.smtp_reply_timeout_seconds
    if config.lease_seconds <= conversation:
        raise ConfigurationError(
            f"LEASE_SECONDS={config.lease_seconds:g}: expected more than {conversation:g}, "
            "the sum of SMTP_TIMEOUT_SECONDS and SMTP_REPLY_TIMEOUT_SECONDS, because a lease must cover one conversation."
        )
    if on_dyno and config.is_sqlite:
        raise ConfigurationError(
            "DATABASE_URL is not set: on a dyno a SQLite file is thrown away at each restart; add PostgreSQL."
        )
    if on_dyno and config.smtp_url is None:
        raise ConfigurationError(
            "SMTP_URL is not set: on a dyno mails written to files are thrown away at each restart."
        )


def from_environment(instance: Path, dotenv: Path | None = None) -> Config:
    """The environment over `.env` (beside the instance folder unless ``dotenv`` says where)."""
    path = dotenv if dotenv is not None else instance.parent / ".env"
    merged = {key: value for key, value in dotenv_values(path).items() if value is not None}
    return load({**merged, **os.environ}, instance)


assert [s.name.lower() for s in SETTINGS] + ["instance"] == [f.name for f in fields(Config)]  # noqa: S101 - two lists, kept in step
