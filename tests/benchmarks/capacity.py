"""How far it goes: what a steady rate of e-mails asks of disk, CPU, threads and connections, from measured constants.

    python -m tests.benchmarks.capacity                       10 to 10,000 a second, with the default settings
    python -m tests.benchmarks.capacity --rates 300 --retention-days 30

A multiplication, no measurement: it says when to look, not what a machine will do.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.side_by_side import print_table

DAY = 86_400


@dataclass(frozen=True)
class Constants:
    """Of one e-mail with a text of 300 bytes, from its webhook until it is sent."""

    wal_bytes: float
    commits: float
    updates: float
    web_ms: float  # of CPU
    worker_ms: float
    postgresql_ms: float
    row_bytes: float  # kept for EMAIL_RETENTION_DAYS: id, recipient, fingerprint, times
    index_bytes: float
    content_bytes: float  # kept for BODY_RETENTION_SECONDS
    round_trips: int = 2  # to the mail server
    connections: int = 3  # to PostgreSQL, of each process at most


MEASURED = Constants(
    wal_bytes=2_630, commits=0.9, updates=1.95, web_ms=1.0, worker_ms=0.76, postgresql_ms=0.54,
    row_bytes=300, index_bytes=225, content_bytes=320,
)  # fmt: skip
"""`python -m tests.benchmarks.cost` on two cores that are busy, so that commits are shared; the stored bytes are those
that `growth` prints, of indexes a third more, because they were built at once there.
"""

FULL = 0.6
"""Of a core that a process is planned to use."""

VACUUM_SHARE = 0.01
"""Of the rows, dead: then autovacuum starts, which reads all indexes of the table."""


@dataclass(frozen=True)
class Plan:
    """What ``rate`` e-mails a second need, all day long."""

    rate: float
    retention_days: float
    body_days: float
    round_trip: float = 0.05
    each: Constants = MEASURED

    @property
    def rows(self) -> float:
        return self.rate * DAY * self.retention_days

    @property
    def indexes_gb(self) -> float:
        return self.rows * self.each.index_bytes / 1e9

    @property
    def disk_gb(self) -> float:
        content = self.rate * DAY * min(self.body_days, self.retention_days) * self.each.content_bytes
        return (self.rows * self.each.row_bytes + content) / 1e9 + self.indexes_gb

    def days_within(self, gigabytes: float) -> float:
        """What EMAIL_RETENTION_DAYS may be on such a disk."""
        a_day = self.rate * DAY / 1e9
        left = gigabytes - a_day * self.body_days * self.each.content_bytes
        return max(0.0, left / (a_day * (self.each.row_bytes + self.each.index_bytes)))

    @property
    def wal_mb_a_second(self) -> float:
        return self.rate * self.each.wal_bytes / 1e6

    def cores(self, milliseconds: float) -> float:
        return self.rate * milliseconds / 1000

    def processes(self, milliseconds: float) -> int:
        return max(1, math.ceil(self.cores(milliseconds) / FULL))

    @property
    def connections(self) -> int:
        return self.each.connections * (self.processes(self.each.web_ms) + self.processes(self.each.worker_ms))

    @property
    def threads(self) -> int:
        """That sending itself takes, waiting for the mail server."""
        return max(1, math.ceil(self.rate * self.each.round_trips * self.round_trip))

    @property
    def days_between_vacuums(self) -> float:
        return VACUUM_SHARE * self.rows / (self.rate * self.each.updates * DAY)


def rows(plans: Sequence[Plan]) -> list[tuple[str, ...]]:
    """A column for each plan."""
    each = plans[0].each
    lines = {
        "e-mails a second": [f"{plan.rate:,g}" for plan in plans],
        "rows kept": [f"{plan.rows / 1e6:,.0f} M" for plan in plans],
        "disk": [_bytes(plan.disk_gb) for plan in plans],
        "days of retention on 500 GB": [f"{plan.days_within(500):,.0f}" for plan in plans],
        "WAL, MB/s": [f"{plan.wal_mb_a_second:,.2f}" for plan in plans],
        "commits a second": [f"{plan.rate * each.commits:,.0f}" for plan in plans],
        "cores for web": [f"{plan.cores(each.web_ms):,.2f}" for plan in plans],
        "cores for workers": [f"{plan.cores(each.worker_ms):,.2f}" for plan in plans],
        "cores for PostgreSQL": [f"{plan.cores(each.postgresql_ms):,.2f}" for plan in plans],
        "web and worker processes": [
            f"{plan.processes(each.web_ms)} + {plan.processes(each.worker_ms)}" for plan in plans
        ],
        "connections to PostgreSQL": [f"{plan.connections:,}" for plan in plans],
        "threads that send over 50 ms": [f"{plan.threads:,}" for plan in plans],
        "days between two vacuums": [f"{plan.days_between_vacuums:.1f}" for plan in plans],
        "indexes that each vacuum reads": [_bytes(plan.indexes_gb) for plan in plans],
    }
    return [(name, *cells) for name, cells in lines.items()]


def _bytes(gigabytes: float) -> str:
    return f"{gigabytes / 1000:,.1f} TB" if gigabytes >= 1000 else f"{gigabytes:,.0f} GB"


def default_plans() -> list[Plan]:
    return [Plan(rate, 400, 7) for rate in (10, 100, 1_000, 10_000)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--retention-days", type=float, default=400, help="EMAIL_RETENTION_DAYS (default 400)")
    parser.add_argument("--body-days", type=float, default=7, help="BODY_RETENTION_SECONDS, in days (default 7)")
    given = parser.parse_args()
    print_table(rows([Plan(rate, given.retention_days, given.body_days) for rate in given.rates]))


if __name__ == "__main__":
    main()
