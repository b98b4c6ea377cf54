"""`flask check`: what an operator would look at, looked at."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from huey.storage import RedisStorage
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.lock import Lock
from redis.retry import Retry
from sqlalchemy.exc import SQLAlchemyError

from emailsvc import outbox, reports
from emailsvc.clock import utcnow
from emailsvc.context import Service
from emailsvc.db import schema
from emailsvc.db.connections import refused_by_pooler
from emailsvc.errors import brief
from emailsvc.feedback.routes import path_of
from emailsvc.mail import smtp
from emailsvc.settings.config import Config
from emailsvc.vocabulary import DeliveryState
from emailsvc.wakeups.locks import PREFIX

GREYLISTING_SECONDS = 300.0
"""What a greylisting server commonly asks a new sender to wait."""

CLOCK_SECONDS = 2.0
"""The database's clock decides, but signatures and `Date` go by this machine's."""

REDIS_KEYS = f"huey.*.emailsvc* and {PREFIX}*"
"""Every key of the service in Redis, and those on which the check tries what the service does."""


@dataclass(frozen=True, slots=True)
class Finding:
    level: str  # "ok", "warning" or "wrong"
    subject: str
    text: str


def diagnose(own: Service) -> list[Finding]:
    """Every finding, in the order of the way an e-mail takes. What is written to try it is taken away again."""
    return [*_configuration(own.config), *_database(own), *_redis(own.config), *_mail_server(own.config)]


def _configuration(config: Config) -> Iterator[Finding]:
    yield Finding("ok", "configuration", "every variable is valid")
    for what in config.misspelt:
        yield Finding("warning", "settings", what)
    span = sum(
        min(config.retry_delay_seconds * 2.0**n, config.retry_max_delay_seconds)
        for n in range(min(config.max_retry_attempts, 60))
    )
    if span < GREYLISTING_SECONDS:
        yield Finding(
            "warning", "retries", f"they span {span:g} s in all, and greylisting servers commonly ask for "
            f"{GREYLISTING_SECONDS:g}: raise MAX_RETRY_ATTEMPTS or RETRY_DELAY_SECONDS",
        )  # fmt: skip
    yield from _access(config)


def _access(config: Config) -> Iterator[Finding]:
    clients = config.api_tokens or config.webhook_secrets
    operators = config.operator_tokens or config.api_tokens
    if not clients and not operators:
        yield Finding("warning", "access", "neither API_TOKENS nor WEBHOOK_SECRETS is set: only loopback is served")
    elif not clients:
        yield Finding("warning", "access", "neither API_TOKENS nor WEBHOOK_SECRETS is set: webhooks only from loopback")
    elif not operators:
        yield Finding("warning", "access", "API_TOKENS is not set: operator routes are for loopback only")


def _database(own: Service) -> Iterator[Finding]:
    try:
        with own.engine.connect().execution_options(read_only=True) as connection:
            unfit, pooled = schema.unfit_encoding(connection), connection.info.get("pooled")
        if unfit:
            yield Finding("wrong", "encoding", unfit)
        if schema.is_older(own.engine):
            yield Finding("wrong", "database", "its schema is older than this code: run `flask db upgrade`")
            return
        outbox.try_commit(own.engine)
        through = f"{own.engine.dialect.name}{' through a connection pooler' if pooled else ''}"
        yield Finding("ok", "database", f"takes commits ({through}), the schema fits")
        problems = reports.readiness(own.engine, own.config)
        violations = reports.violations(own.engine, own.config)
        delivery = reports.delivery_state(own.engine)
        vitals = reports.vitals(own.engine)
    except SQLAlchemyError as exc:
        advice = refused_by_pooler(exc) or f"{brief(exc)}; check DATABASE_URL"
        yield Finding("wrong", "database", f"cannot be used: {advice}")
        return
    for problem in problems:
        yield Finding("wrong", "readiness", problem)
    if not problems:
        yield Finding("ok", "readiness", "a worker is alive, and nothing has been due for too long")
    yield from _seen(vitals)
    if own.config.hears_reports:
        yield _reported(own.config, vitals)
    for violation in violations:
        yield Finding("wrong", "invariant", violation)
    if not violations:
        yield Finding("ok", "invariant", "holds")
    if delivery.state is not DeliveryState.RUNNING:
        yield Finding("warning", "delivery", f"{delivery.state} since {delivery.since}: {delivery.reason}")


def _seen(vitals: reports.Vitals) -> Iterator[Finding]:
    yield Finding("ok" if vitals.workers else "wrong", "workers", f"{vitals.workers} alive")
    due = vitals.seconds_due
    yield Finding("ok", "due", "nothing is" if due is None else f"the oldest e-mail has been for {due:,.0f} s")
    if vitals.letters:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in vitals.letters.items())
        yield Finding("warning", "dead letters", f"{sum(vitals.letters.values()):,} wait for a decision: {reasons}")
    ahead = vitals.clock_ahead
    said = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the database's"
    yield Finding("ok" if abs(ahead) < CLOCK_SECONDS else "warning", "clock", said)


def _reported(config: Config, vitals: reports.Vitals) -> Finding:
    silence = vitals.seconds_reported
    last = "none has come" if silence is None else f"the last came {silence:,.0f} s ago"
    if vitals.sent_lately and (silence is None or silence > reports.DAY_SECONDS):
        advice = "check the address and the secret that the provider posts with"
        return Finding("warning", "reports", f"{last}, though e-mail was sent within a day: {advice}")
    open_routes = ", ".join(sorted({path_of(name) for name, _ in config.report_secrets}))
    return Finding("ok", "reports", f"{last}; open: {open_routes}")


def _redis(config: Config) -> Iterator[Finding]:
    if config.redis_url is None:
        yield Finding("ok", "queue", "a SQLite file in instance/ (REDIS_URL is not set)")
        return
    try:
        with Redis.from_url(
            config.redis_url, socket_timeout=3, socket_connect_timeout=3, retry=Retry(NoBackoff(), 0)
        ) as client:
            _use(client)
            evicts = _evicts(client)
        yield Finding("ok", "redis", "wake-ups and locks work")
        if evicts:
            yield Finding("warning", "redis memory", f"when it is full it drops keys, wake-ups too: {evicts}")
    except RedisError as exc:
        yield Finding("wrong", "redis", f"cannot be used: {exc}; {_what_to_do(exc)}")


def _use(client: Redis) -> None:
    """Enqueue, pop, schedule, lock and release by script, as the service does. Raises RedisError."""
    word = secrets.token_hex(4)
    storage = RedisStorage(f"emailsvc_check_{word}", connection_pool=client.connection_pool)
    lock = Lock(client, f"{PREFIX}check_{word}", timeout=10, blocking=False)
    try:
        storage.queue_size()
        storage.enqueue(b"check")
        if storage.dequeue() != b"check":
            raise RedisError("a wake-up was stored and could not be read back")
        storage.add_to_schedule(b"check", utcnow())
        storage.read_schedule(utcnow() + timedelta(hours=1))
        lock.acquire()
        lock.release()
    finally:
        with contextlib.suppress(RedisError):
            client.delete(storage.queue_key)
            client.delete(storage.schedule_key)
            client.delete(lock.name)


def _evicts(client: Redis) -> str | None:
    """The policy by which it drops keys of ours; None when it does not, or does not tell."""
    try:
        memory = client.info(section="memory")
    except ResponseError:  # the service itself needs no right to ask
        return None
    policy = memory.get("maxmemory_policy", "noeviction")
    return f"its maxmemory-policy is {policy}" if memory.get("maxmemory") and policy != "noeviction" else None


def _what_to_do(exc: RedisError) -> str:
    if isinstance(exc, OutOfMemoryError):
        return "it is full: raise its maxmemory, or remove what fills it"
    if isinstance(exc, ReadOnlyError):
        return "it is a replica: name its primary in REDIS_URL"
    if isinstance(exc, ResponseError):
        return f"the service needs lists, sorted sets and scripts on the keys {REDIS_KEYS}"
    return "check REDIS_URL"


def _mail_server(config: Config) -> Iterator[Finding]:
    if config.smtp_url is None:
        yield Finding("warning", "mail", "SMTP_URL is not set: e-mails become files in instance/outbox/")
        return
    try:
        greeting = smtp.check(config.smtp_url)
        yield Finding("ok", "mail", f"login accepted by {config.smtp_url.host}: {greeting}")
        if config.bounce_address:
            yield _bounces(config.bounce_address, smtp.try_sender(config.smtp_url, config.bounce_address))
    except (OSError, ValueError) as exc:
        yield Finding("wrong", "mail", f"{exc}; check SMTP_URL")


def _bounces(address: str, refusal: str | None) -> Finding:
    if refusal is None:
        return Finding("ok", "bounces", f"the mail server takes mail from {address}")
    return Finding("wrong", "bounces", f"the mail server takes no mail from {address}: {refusal}; check BOUNCE_ADDRESS")
