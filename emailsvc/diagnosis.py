"""`flask check`: what an operator would look at, looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from emailsvc import reports, schema
from emailsvc.config import Config
from emailsvc.errors import brief
from emailsvc.extensions import Service
from emailsvc.mail import smtp

GREYLISTING_SECONDS = 300.0
"""What a greylisting server commonly asks a new sender to wait."""


@dataclass(frozen=True, slots=True)
class Finding:
    level: str  # "ok", "warning" or "wrong"
    subject: str
    text: str


def diagnose(own: Service) -> list[Finding]:
    """Every finding, in the order of the way an e-mail takes. Nothing is changed."""
    return [*_configuration(own.config), *_database(own), *_redis(own.config), *_mail_server(own.config)]


def _configuration(config: Config) -> Iterator[Finding]:
    yield Finding("ok", "configuration", "every variable is readable")
    span = sum(
        min(config.retry_delay_seconds * 2.0**n, config.retry_max_delay_seconds)
        for n in range(min(config.max_retry_attempts, 60))
    )
    if span < GREYLISTING_SECONDS:
        yield Finding(
            "warning", "retries", f"they span {span:g} s in all, and greylisting servers commonly ask for "
            f"{GREYLISTING_SECONDS:g}: raise MAX_RETRY_ATTEMPTS or RETRY_DELAY_SECONDS",
        )  # fmt: skip
    if not config.api_tokens and not config.webhook_secrets:
        yield Finding("warning", "access", "neither API_TOKENS nor WEBHOOK_SECRETS is set: only loopback is served")
    elif not config.api_tokens:
        yield Finding("warning", "access", "API_TOKENS is not set: operator routes are for loopback only")


def _database(own: Service) -> Iterator[Finding]:
    try:
        if schema.is_older(own.engine):
            yield Finding("wrong", "database", "its schema is older than this code: run `flask db upgrade`")
            return
        yield Finding("ok", "database", f"reachable ({own.engine.dialect.name}), the schema fits")
        violations = reports.violations(own.engine, own.config)
        state = reports.delivery_state(own.engine)
    except SQLAlchemyError as exc:
        yield Finding("wrong", "database", f"does not answer: {brief(exc)}; check DATABASE_URL")
        return
    for violation in violations:
        yield Finding("wrong", "invariant", violation)
    if not violations:
        yield Finding("ok", "invariant", "holds")
    if state["state"] != "running":
        yield Finding("warning", "delivery", f"{state['state']} since {state['since']}: {state['reason']}")


def _redis(config: Config) -> Iterator[Finding]:
    if config.redis_url is None:
        yield Finding("ok", "queue", "a SQLite file in instance/ (REDIS_URL is not set)")
        return
    try:
        with Redis.from_url(config.redis_url, socket_timeout=3, socket_connect_timeout=3) as client:
            client.ping()
        yield Finding("ok", "redis", "answers")
    except RedisError as exc:
        yield Finding("wrong", "redis", f"does not answer: {exc}; check REDIS_URL")


def _mail_server(config: Config) -> Iterator[Finding]:
    if config.smtp_url is None:
        yield Finding("warning", "mail", "SMTP_URL is not set: mails become files in instance/outbox/")
        return
    try:
        greeting = smtp.check(config.smtp_url)
        yield Finding("ok", "mail", f"{config.smtp_url.host} lets us in: {greeting}")
    except (OSError, ValueError) as exc:
        yield Finding("wrong", "mail", f"{exc}; check SMTP_URL")
