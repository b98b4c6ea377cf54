"""A PostgreSQL database as years of use leave it, filled by the server itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

BUSY = "alerts@example.com"


@dataclass(frozen=True)
class Filling:
    """How many e-mails of each kind. ``hour``: received and sent since the last full hour; ``waiting``: due now.
    ``busy``: every so many-th e-mail goes to one recipient.
    """

    stored: int
    hour: int = 0
    waiting: int = 0
    failed: int = 0
    busy: int = 0


def fill(connection: psycopg.Connection[Any], filling: Filling) -> None:
    """Into an empty, migrated database; counted, vacuumed and analysed as by a service that ran all the time."""
    with connection.transaction():
        indexes = connection.execute(_INDEXES).fetchall()
        for name, _ in indexes:
            connection.execute(f'DROP INDEX "{name}"'.encode())
        for kind, count, span, rows in (
            ("stored", filling.stored, _LAST_MONTH, _SENT),
            ("hour", filling.hour, _THIS_HOUR, _SENT),
            ("failed", filling.failed, _LAST_MONTH, _FAILED),
            ("waiting", filling.waiting, _LAST_MINUTE, _WAITING),
        ):
            connection.execute(
                _EMAILS.format(busy=BUSY, **span).encode(),
                {"kind": kind, "count": count, "busy": filling.busy or None, **rows},
            )
        for _, definition in indexes:
            connection.execute(definition.encode())
        for statement in (_ATTEMPTS, _LETTERS, *_COUNTERS):
            connection.execute(statement)
    connection.execute("VACUUM (ANALYZE) emails, attempts, dead_letters, counters")


_SENT: dict[str, object] = {"status": "sent", "attempts": 1, "error": None}
_WAITING: dict[str, object] = {"status": "pending", "attempts": 0, "error": None}
_FAILED: dict[str, object] = {"status": "failed", "attempts": 1, "error": "550 5.1.1 no such user"}

_LAST_MONTH = {"since": "hour - interval '30 days'", "until": "hour"}
_THIS_HOUR = {"since": "hour", "until": "greatest(hour, now() - interval '30 s')"}
_LAST_MINUTE = {"since": "now() - interval '90 s'", "until": "now() - interval '30 s'"}
"""Nothing in the last seconds, which no roll-up has settled yet: they tell of a rate, and not of what has grown."""

_EMAILS = """
    WITH span AS (
        SELECT {since} AS since, {until} AS until, now() - interval '167 hours' AS scrubbed
        FROM date_trunc('hour', now(), 'UTC') AS hour
    ), made AS (
        SELECT n, since + (until - since) * (n - 1) / %(count)s AS at, scrubbed
        FROM generate_series(1, %(count)s) AS n, span
    )
    INSERT INTO emails (
        email_id, fingerprint, recipient, subject, body, size, message_id, priority, on_uncertain, status, attempts,
        claim, received_at, next_attempt_at, sent_at, final_at, scrubbed_at, last_error
    )
    SELECT %(kind)s || '-' || n, md5(n::text) || md5(%(kind)s || n),
        CASE WHEN n %% %(busy)s::int = 0 THEN '{busy}' ELSE 'user' || n || '@example' || n %% 50 || '.com' END,
        CASE WHEN at >= scrubbed OR NOT ended THEN 'Your order' END,
        CASE WHEN at >= scrubbed OR NOT ended THEN repeat('Thank you for your order. ', 12) END,
        400, '<' || md5(%(kind)s || n) || '@localhost>', 1, 'hold', %(status)s, %(attempts)s,
        CASE WHEN %(status)s <> 'pending' THEN md5((n / 10)::text) END, at,
        CASE WHEN %(status)s = 'pending' THEN at END,
        CASE WHEN ended THEN at + interval '50 ms' END, CASE WHEN ended THEN at + interval '50 ms' END,
        CASE WHEN ended AND at < scrubbed THEN at + interval '7 days' END, %(error)s
    FROM made, (SELECT %(status)s = 'sent' AS ended) AS end_of_it
    ORDER BY n"""

_INDEXES = """
    SELECT indexname, indexdef FROM pg_indexes i
    WHERE tablename = 'emails' AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conname = i.indexname)"""

_ATTEMPTS = """
    INSERT INTO attempts (email, outcome, code, enhanced, text, domain, started_at, at)
    SELECT id, 'rejected', 550, '5.1.1', last_error, split_part(recipient, '@', 2), received_at, received_at
    FROM emails WHERE status = 'failed'"""
_LETTERS = """
    INSERT INTO dead_letters (email, reason, error, attempts, created_at)
    SELECT id, 'rejected', last_error, attempts, received_at FROM emails WHERE status = 'failed' ORDER BY id"""
_COUNTERS = (
    *(
        f"""
        INSERT INTO counters (hour, kind, shard, value)
        SELECT date_trunc('hour', at, 'UTC'), '{kind}', 0, count(*) FROM (SELECT {column} AS at FROM {table}) AS a
        WHERE at < date_trunc('hour', now(), 'UTC') GROUP BY 1"""
        for kind, table, column in (
            ("received", "emails", "received_at"),
            ("sent", "emails", "sent_at"),
            ("failed_attempts", "attempts", "at"),
        )
    ),
    "UPDATE switch SET rolled_up_to = date_trunc('hour', now(), 'UTC')",
)
