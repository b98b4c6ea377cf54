"""`emails` in hash partitions by `email_id`, beside one table: what holds, what does not, and at what rate.

    python -m tests.benchmarks.partitions
    python -m tests.benchmarks.partitions --partitions 64 --stored 3000000

A trial on the schema of this checkout, changed by SQL in a database that is thrown away: no release partitions.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from sqlalchemy import text

from emailsvc import outbox
from emailsvc.outbox import Claim, Swept, Verdict
from tests.benchmarks.growth import Connection, Grown
from tests.benchmarks.side_by_side import Side, alternate, compare, insist_on_quiet, options, print_table
from tests.benchmarks.stand import Stand
from tests.factories import new_email
from tests.fill import Filling


def partition(connection: Connection, parts: int) -> None:
    """By `email_id`, because a unique key must contain what partitions; so nothing can refer to `id` alone."""
    indexes = connection.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'emails'").fetchall()
    plain = [definition for (definition,) in indexes if "UNIQUE" not in definition]
    referring = connection.execute(
        "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE confrelid = 'emails'::regclass"
    ).fetchall()
    for statement in (
        *(f"ALTER TABLE {table} DROP CONSTRAINT {name}" for table, name in referring),
        "ALTER TABLE emails RENAME TO plain",
        "CREATE TABLE emails (LIKE plain INCLUDING DEFAULTS INCLUDING CONSTRAINTS) PARTITION BY HASH (email_id)",
        "ALTER SEQUENCE emails_id_seq OWNED BY emails.id",
        "DROP TABLE plain",
        "ALTER TABLE emails ADD PRIMARY KEY (id, email_id), ADD CONSTRAINT uq_emails_email_id UNIQUE (email_id)",
        *plain,
        *(
            f"CREATE TABLE emails_{number} PARTITION OF emails FOR VALUES WITH (MODULUS {parts}, REMAINDER {number})"
            " WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000)"
            for number in range(parts)
        ),
    ):
        connection.execute(statement.encode())


def unique_key(grown: Grown) -> str:
    """Sixteen at once with the same twenty ids."""
    engine, config = grown.service.engine, grown.service.config
    emails = [new_email(f"race-{number % 20}") for number in range(320)]
    with ThreadPoolExecutor(16) as pool:
        found = Counter(pool.map(lambda email: outbox.accept(engine, email, config).status, emails))
    return f"{found[Verdict.ACCEPTED]} accepted, {found[Verdict.DUPLICATE]} duplicates, of 320 with 20 ids"


def claim_order(grown: Grown) -> str:
    """By priority, and of one priority what has been due for longest."""
    with grown.service.engine.begin() as connection:
        connection.execute(text("UPDATE emails SET priority = id % 3 WHERE status = 'pending'"))
        rows = connection.execute(text("SELECT id, priority, next_attempt_at FROM emails WHERE status = 'pending'"))
        due = {row.id: (row.priority, row.next_attempt_at) for row in rows}
    claims = [outbox.claim(grown.service.engine, secrets.token_hex(16), grown.service.config) for _ in range(300)]
    taken = [[due[row.id] for row in claim.rows] for claim in claims if isinstance(claim, Claim)]
    ordered = all(max(before) <= min(after) for before, after in pairwise(taken))
    return f"{sum(map(len, taken)):,} in {len(taken)} claims, {'in' if ordered else 'out of'} order"


def purge(grown: Grown) -> str:
    """What belongs to a row goes with it where a foreign key cascades, and else stays behind."""
    with grown.service.engine.begin() as connection:
        connection.execute(text(_DISCARD))
        connection.execute(text(_AGE))
    swept = Swept()
    outbox.retain(grown.service.engine, grown.service.config, swept)
    with grown.service.engine.connect() as connection:
        left = connection.execute(text(_ORPHANS)).scalar_one()
    return f"{swept.purged:,} purged, {left:,} attempts left without their e-mail"


_DISCARD = "UPDATE dead_letters SET resolved_at = now() - interval '500 days', resolution = 'discarded'"
_AGE = """
    UPDATE emails SET received_at = now() - interval '500 days', final_at = now() - interval '500 days'
    WHERE status IN ('sent', 'failed') AND id % 50 = 0"""
_ORPHANS = "SELECT count(*) FROM attempts a WHERE NOT EXISTS (SELECT FROM emails e WHERE e.id = a.email)"

CHECKS: dict[str, Callable[[Grown], str]] = {
    "the unique key": unique_key,
    "claim order": claim_order,
    "purge": purge,
}


def main() -> None:
    parser = options(__doc__, rounds=11, minutes=3)
    parser.add_argument("--partitions", type=int, default=16)
    parser.add_argument("--stored", type=int, default=1_000_000)
    parser.add_argument("--waiting", type=int, default=30_000)
    parser.add_argument("--repeats", type=int, default=200)
    given = parser.parse_args()
    insist_on_quiet(given.anyway)
    filling = Filling(given.stored, waiting=given.waiting, failed=1_000)
    with Stand() as stand:
        parted = Grown(stand, filling, lambda connection: partition(connection, given.partitions))
        plain = Grown(stand, filling)
        name = f"{given.partitions} partitions"
        sides = [Side(name, lambda: parted.run(given.repeats)), Side("one table", lambda: plain.run(given.repeats))]
        measured = alternate(sides, given.rounds, given.minutes)
        held = [(what, check(parted), check(plain)) for what, check in CHECKS.items()]
    compare(measured, name, "one table")
    print_table([("", name, "one table"), *held])


if __name__ == "__main__":
    main()
