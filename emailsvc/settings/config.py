"""Configuration as one table: name, type, parser, default, help. `python -m tests.documents` writes the documents from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from emailsvc.errors import ConfigurationError
from emailsvc.feedback.reference import HEADERS
from emailsvc.intake.payload import MAX_WINDOW_SECONDS
from emailsvc.settings import parsers
from emailsvc.vocabulary import OnUncertain

T = TypeVar("T")

INSTANCE = Path(__file__).parents[2] / "instance"


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    parse: Callable[[str], object]
    default: str  # as it would stand in the environment; "" means none
    help: str
    secret: bool  # its value is never shown
    empty: object  # the value when there is no text, not even a default


def _setting(parse: Callable[[str], T], default: str, help: str, *, secret: bool = False, empty: T | None = None) -> T:
    declared = {"parse": parse, "default": default, "help": help, "secret": secret, "empty": empty}
    return cast(T, field(repr=not secret, metadata=declared))


# fmt: off
@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting, parsed. Durations are seconds unless the name says otherwise."""

    database_url: str = _setting(parsers.database_url, "", "`postgres://…`, `postgresql://…` or `sqlite:////folder/file.db`; unset: SQLite in `instance/`", secret=True)
    redis_url: str | None = _setting(parsers.redis_url, "", "`redis://…` or `rediss://…` for the wake-up queue and locks; unset: the queue is an SQLite file in `instance/`, for the processes of one machine", secret=True)
    smtp_url: parsers.SmtpServer | None = _setting(parsers.smtp_url, "", "`smtp://user:password@host:587` (STARTTLS is required, unless the host is loopback or the URL ends in `?starttls=off`) or `smtps://…:465`; percent-encode `@`, `:` and `/` in a password; unset: e-mails become files in `instance/outbox/`", secret=True)
    mail_from: str = _setting(parsers.address, "no-reply@localhost", "From address of e-mails without `from`")
    mail_from_domains: tuple[str, ...] = _setting(parsers.domains, "", "further domains that `from` may use, separated by blanks or commas", empty=())
    bounce_address: str | None = _setting(parsers.envelope_sender, "", "envelope sender of every e-mail, where mail servers send bounces to; unset: the From address")
    retry_delay_seconds: float = _setting(parsers.number(0), "5", "delay before the first retry; it doubles with each further one, ±20 %")
    max_retry_attempts: int = _setting(parsers.whole(0, 1000), "3", "retries after the first attempt")
    retry_max_delay_seconds: float = _setting(parsers.number(0), "3600", "the longest such delay")
    on_uncertain: str = _setting(parsers.choice(*OnUncertain), "", "`hold` or `retry`, for e-mails without `on_uncertain`; unset: `hold`, or `retry` once `IDEMPOTENCY_HEADER` is set")
    on_mismatch: str = _setting(parsers.choice("reject", "accept"), "reject", "answer to a known id with other content: `reject` (422) or `accept` (200)")
    dedupe_window_seconds: int | None = _setting(parsers.whole(1, MAX_WINDOW_SECONDS), "", "for so many seconds after an e-mail was accepted, what comes under another id for the same recipient with the same `dedupe_key`, or else the same content, is its duplicate; for clients that give no `dedupe_window_seconds`; unset: only the id counts")
    dedupe_mode: str = _setting(parsers.choice("enforce", "observe"), "enforce", "`observe` sends such duplicates all the same and counts them (`would_absorb`), to try a window out")
    idempotency_header: str | None = _setting(parsers.header_name, "", "header that carries the `email_id` to a provider that de-duplicates, such as `Resend-Idempotency-Key`")
    smtp_timeout_seconds: float = _setting(parsers.number(0.1, 3600), "30", "total time of a conversation up to the final dot; a large e-mail gets a second more for each 64 KiB on the wire, where base64 makes 9.6 MB of a 7 MB attachment")
    smtp_reply_timeout_seconds: float = _setting(parsers.number(0.1, 3600), "60", "time for the reply to the final dot")
    outage_limit_seconds: float = _setting(parsers.number(1), "86400", "how long an outage may hold up an e-mail; then it becomes a dead letter (`unreachable`)")
    batch_size: int = _setting(parsers.whole(1, 1000), "10", "e-mails per claim")
    lease_seconds: float = _setting(parsers.number(1), "120", "how long a claim lasts; more than the two timeouts above together")
    sweep_seconds: float = _setting(parsers.number(1, 3600), "60", "how often repairs run")
    worker_threads: int = _setting(parsers.whole(1, 64), "4", "threads per worker process, each with a connection to the mail server")
    rate_limit_per_second: float | None = _setting(parsers.number(0.001, 1e6), "", "most e-mails started per second, over all workers")
    delivery_paused: bool = _setting(parsers.flag, "0", "`1` pauses delivery when a process starts; set it for a restored or copied database")
    webhook_secrets: tuple[str, ...] = _setting(parsers.secret_list, "", "secrets of the clients' signatures, separated by blanks or commas; `flask secret` prints a new one", secret=True, empty=())
    api_tokens: tuple[str, ...] = _setting(parsers.token_list, "", "bearer tokens of 16 or more ASCII characters, separated by blanks or commas", secret=True, empty=())
    operator_tokens: tuple[tuple[str, str], ...] = _setting(parsers.operator_tokens, "", "`name:token` for each operator (tokens as above), separated by blanks or commas; once set, operator routes take only these, `API_TOKENS` only send, and `/actions` tells who did what", secret=True, empty=())
    report_secrets: tuple[tuple[str, str], ...] = _setting(parsers.report_secrets, "", "`route:secret` for each [route of reports](../web/README.md#reports) that is to be open, separated by blanks or commas; unset: none is, and e-mails carry no reference", secret=True, empty=())
    report_header: str = _setting(parsers.choice(*HEADERS), "X-Email-Ref", "header that carries the reference, for a provider that hands back only its own: " + ", ".join(f"`{name}`" for name in HEADERS))
    report_wait_seconds: float = _setting(parsers.number(0, 86400), "120", "with `REPORT_SECRETS`: how long an uncertain e-mail under `retry` waits at least, so that a report can make the second copy needless")
    max_request_bytes: int = _setting(parsers.whole(1024), "10485760", "the largest request; a larger one is answered 413")
    body_retention_seconds: float = _setting(parsers.number(0, 3e9), "604800", "content is removed this long after the e-mail was sent, cancelled or discarded")
    email_retention_days: float = _setting(parsers.number(0, 36500), "400", "the whole row is deleted this long after that; de-duplication ends with it")
    ready_max_age_seconds: float = _setting(parsers.number(1), "300", "`/readyz` fails when an e-mail has been due for longer")
    log_format: str = _setting(parsers.choice("text", "json"), "text", "`text`, or `json` for one JSON object per line")
    log_level: str = _setting(parsers.log_level, "INFO", "`DEBUG`, `INFO`, `WARNING` or `ERROR`")
    port: int | None = _setting(parsers.whole(1, 65535), "", "listen on this port of all interfaces; unset: 127.0.0.1:8000 (`flask start --port` stays on loopback)")
    web_concurrency: int | None = _setting(parsers.whole(1, 1000), "", "web processes; unset: one")

    instance: Path
    misspelt: tuple[str, ...]
    # fmt: on

    @property
    def from_domains(self) -> frozenset[str]:
        """The domains that a client's `from` may use, in lower case."""
        return frozenset({self.mail_from.rpartition("@")[2].lower(), *self.mail_from_domains})

    @property
    def hears_reports(self) -> bool:
        return bool(self.report_secrets)

    @property
    def is_sqlite(self) -> bool:
        return self.database_url.startswith("sqlite")


SETTINGS = tuple(Setting(one.name.upper(), **one.metadata) for one in fields(Config) if one.metadata)

SIMILAR = 0.85
"""SMPT_URL is 0.875 like SMTP_URL; REDIS_TLS_URL, which some platforms set, only 0.82 like REDIS_URL."""


def load(environ: Mapping[str, str], instance: Path) -> Config:
    """Parse the whole table. Raises ConfigurationError with one line that names variable, value and what is allowed."""
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        text = environ.get(setting.name, "").strip() or setting.default
        try:
            values[setting.name.lower()] = setting.parse(text) if text else setting.empty
        except parsers.Bad as exc:
            shown = "(not shown)" if setting.secret else repr(text)
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
    if {token for _, token in config.operator_tokens} & set(config.api_tokens):
        raise ConfigurationError("OPERATOR_TOKENS and API_TOKENS share a token: one of the latter may only send.")
    if config.hears_reports and (config.idempotency_header or "").lower() == config.report_header.lower():
        raise ConfigurationError("IDEMPOTENCY_HEADER and REPORT_HEADER name the same header.")
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
        text = wrong[0].string  # with the blank lines before it, which dotenv counts as the statement's
        line = wrong[0].line + text[: -len(text.lstrip())].count("\n")
        raise ConfigurationError(f"{path}, line {line}: expected NAME=value, with every quote closed.")
    return {key: value for key, value in dotenv_values(path).items() if value is not None}
