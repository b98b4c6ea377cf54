"""What one e-mail costs from its webhook to `sent`: WAL, index entries, bytes on disk, CPU, connections.

    python -m tests.benchmarks.cost
    python -m tests.benchmarks.cost --beside CHECKOUT    another checkout of this project, on the same servers

Webhooks of 300 bytes of text by 16 connections, two web processes, one worker of four threads, PostgreSQL with fsync,
smtp-sink. WAL is read back with pg_walinspect; images of whole pages, which depend on how far checkpoints are apart,
are counted for themselves.
"""

from __future__ import annotations

import os
import time
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from tests.benchmarks import load
from tests.benchmarks.side_by_side import (
    Measured,
    Side,
    alternate,
    compare,
    insist_on_quiet,
    options,
    summarise,
)
from tests.benchmarks.stand import BODY, Stand, commit_of
from tests.factories import payload
from tests.servers import descendants, wait_for
from tests.stack import ROOT


def cpu_seconds(*roots: int) -> float:
    """User and system time that these processes, their living descendants and their ended ones have taken."""
    return sum(_ticks(pid) for root in roots for pid in (root, *descendants(root))) / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))


class Counted:
    """A life of so many e-mails on one deploy, and what the counters of the system say of it."""

    def __init__(self, stand: Stand, code: Path, emails: int) -> None:
        self.stand, self.emails = stand, emails
        self.stack = stand.deploy(code, workers=1)
        self.stack.hang_up()
        self.name = self.stack.environ["DATABASE_URL"].rpartition("/")[2]
        self._numbers = count()
        with stand.postgresql.connect(self.name) as connection:
            connection.execute("CREATE EXTENSION pg_walinspect")

    def run(self) -> Measured:
        requests = [
            load.request("/webhook/email", payload(f"m-{next(self._numbers)}", body=BODY)) for _ in range(self.emails)
        ]
        with self.stand.postgresql.connect(self.name) as connection:
            connection.execute("CHECKPOINT")
            before, began = self._counters(connection), time.perf_counter()
            client = load.post(self.stack.port, requests, 16, statuses={202})
            unsent = "SELECT count(*) FROM emails WHERE status IN ('pending', 'sending')"
            wait_for(lambda: connection.execute(unsent).fetchone() == (0,), 240, "all to be sent", pause=0.1)
            seconds = time.perf_counter() - began
            after = self._counters(connection)
            wal = self._wal(connection, before["lsn"], after["lsn"])
        spent = {name: after[name] - before[name] for name in after if name != "lsn"}
        return {
            **wal,
            "bytes on disk per e-mail, table": spent["table"] / self.emails,
            "bytes on disk per e-mail, indexes": spent["indexes"] / self.emails,
            "CPU per 1,000 e-mails, web s": 1000 * spent["web"] / self.emails,
            "CPU per 1,000 e-mails, worker s": 1000 * spent["worker"] / self.emails,
            "CPU per 1,000 e-mails, web and worker s": 1000 * (spent["web"] + spent["worker"]) / self.emails,
            "CPU per 1,000 e-mails, PostgreSQL s": 1000 * spent["postgresql"] / self.emails,
            "connections of web and worker": after["connections"],
            "e-mails/s from webhook to sent": self.emails / seconds,
            "the client's own CPU, % of a core": 100 * client.cpu / client.seconds,
        }

    def _counters(self, connection: psycopg.Connection[Any]) -> dict[str, Any]:
        web, worker = self.stack.processes[0].pid, self.stack.processes[1].pid
        row = connection.execute(_COUNTERS).fetchone()
        names = ("lsn", "table", "indexes", "connections")
        processes = {"web": (web,), "worker": (worker,), "postgresql": (self.stand.postgresql.pid,)}
        assert row is not None
        return dict(zip(names, row, strict=True)) | {name: cpu_seconds(*pids) for name, pids in processes.items()}

    def _wal(self, connection: psycopg.Connection[Any], start: str, end: str) -> dict[str, float]:
        records = connection.execute(_WAL, (start, end)).fetchall()
        number = {name: float(of_it) for name, of_it, *_ in records}
        hot = number.get("Heap/HOT_UPDATE", 0)
        updates = hot + number.get("Heap/UPDATE", 0)
        return {
            "WAL bytes per e-mail": sum(float(size) for _, _, size, _ in records) / self.emails,
            "WAL bytes per e-mail, images of whole pages": sum(float(image) for *_, image in records) / self.emails,
            "index entries per e-mail": sum(number.get(name, 0) for name in _ENTRIES) / self.emails,
            "updates per e-mail": updates / self.emails,
            "HOT updates, % of updates": 100 * hot / updates,
            "commits per e-mail": number["Transaction/COMMIT"] / self.emails,
        }


_COUNTERS = """
    SELECT pg_current_wal_flush_lsn()::text, pg_table_size('emails'), pg_indexes_size('emails'),
        (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
            AND backend_type = 'client backend')"""
_ENTRIES = {f"Btree/{what}" for what in ("INSERT_LEAF", "INSERT_POST", "SPLIT_L", "SPLIT_R")}
_WAL = """
    SELECT "resource_manager/record_type", count, record_size, fpi_size
    FROM pg_get_wal_stats(%s::pg_lsn, %s::pg_lsn, true)"""


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--emails", type=int, default=4000, help="in a round (default 4000)")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another checkout of this project")
    given = parser.parse_args()
    insist_on_quiet(given.anyway)
    with Stand() as stand:
        codes = [ROOT, *([given.beside] if given.beside else [])]
        sides = [Side(commit_of(code), Counted(stand, code, given.emails).run) for code in codes]
        measured = alternate(sides, given.rounds, given.minutes)
    ours = sides[0].name
    if given.beside:
        compare(measured, ours, sides[1].name)
    else:
        summarise(measured, f"{ours}, {given.emails:,} e-mails a round")


if __name__ == "__main__":
    main()
