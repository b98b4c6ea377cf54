"""Webhooks a second: ours beside a minimal Flask view, or beside another checkout of this project.

    python -m tests.benchmarks.ingest                       the minimal view: JSON, one INSERT, one LPUSH
    python -m tests.benchmarks.ingest --beside CHECKOUT     another checkout, its own code on the same servers

Two gunicorn processes under `emailsvc.serving`, 16 connections, PostgreSQL with fsync, Redis, no worker. Duplicates are
the ids of the same round once more. With --gthread the minimal view runs under gunicorn's own threads instead.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from itertools import count
from pathlib import Path

from tests.benchmarks import load, peers
from tests.benchmarks.cost import cpu_seconds
from tests.benchmarks.side_by_side import Measured, Side, alternate, compare, insist_on_quiet, options, within
from tests.benchmarks.stand import Stand, commit_of
from tests.factories import payload
from tests.servers import free_port
from tests.stack import ROOT

NEW, DUPLICATES = "new ids, webhooks/s", "duplicates, webhooks/s"
CLIENT = "the client's own CPU, % of a core"


class Webhooks:
    """One round of webhooks at one side, with ids that no round has had."""

    def __init__(self, pid: int, port: int, emails: int, connections: int, *, batches: bool) -> None:
        self.pid, self.port, self.emails = pid, port, emails
        self.connections, self.batches = connections, batches
        self._numbers = count()

    def __call__(self) -> Measured:
        singles = [load.request("/webhook/email", payload(f"m-{next(self._numbers)}")) for _ in range(self.emails)]
        cpu = cpu_seconds(self.pid)
        new = load.post(self.port, singles, self.connections, statuses={202})
        cpu = cpu_seconds(self.pid) - cpu
        again = load.post(self.port, singles, self.connections, statuses={200})
        measured = {
            NEW: new.rate,
            "new ids, p99 ms": new.p99_ms,
            "new ids, CPU per 1,000, web s": 1000 * cpu / self.emails,
            DUPLICATES: again.rate,
            "duplicates, p99 ms": again.p99_ms,
            CLIENT: 100 * new.cpu / new.seconds,
        }
        if self.batches:
            measured |= self._batches(100) | self._batches(1000)
        return measured

    def _batches(self, size: int) -> dict[str, float]:
        requests = [
            load.request("/webhook/email/batch", {"emails": [payload(f"m-{next(self._numbers)}") for _ in range(size)]})
            for _ in range(4000 // size)
        ]
        return {f"batches of {size:,}, e-mails/s": load.post(self.port, requests, 4, statuses={200}).rate * size}


def checkout(stand: Stand, code: Path, emails: int, connections: int) -> Side:
    stack = stand.deploy(code, workers=0)
    stack.hang_up()
    return Side(commit_of(code), Webhooks(stack.processes[0].pid, stack.port, emails, connections, batches=True))


def minimal_view(stand: Stand, emails: int, connections: int, *, gthread: bool) -> Side:
    port = free_port()
    environ = {**stand.addresses(), "PYTHONPATH": str(ROOT)}
    peers.run(Path(sys.executable).parent, "minimal_view.py", environ=environ)
    command = f"{sys.executable} -m gunicorn minimal_view:app --config python:emailsvc.serving --workers 2"
    command += f" --bind 127.0.0.1:{port} --pythonpath {peers.HERE}"
    if gthread:
        command += " --worker-class gthread"
    process = peers.spawn("minimal view", command, stand.new_folder(), environ, "Booting worker")
    stand.at_end(process.kill9)
    named = ", ".join(f"{name} {version(name)}" for name in ("flask", "gunicorn", "psycopg"))
    return Side(f"minimal view ({named})", Webhooks(process.pid, port, emails, connections, batches=False))


def main() -> None:
    parser = options(__doc__, rounds=11)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another checkout of this project")
    parser.add_argument("--emails", type=int, default=2000, help="new ids in a round (default 2000)")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--gthread", action="store_true")
    given = parser.parse_args()
    insist_on_quiet(given.anyway)
    with Stand() as stand:
        ours = checkout(stand, ROOT, given.emails, given.connections)
        if given.beside:
            other = checkout(stand, given.beside, given.emails, given.connections)
        else:
            other = minimal_view(stand, given.emails, given.connections, gthread=given.gthread)
        measured = alternate([ours, other], given.rounds, given.minutes)
    compare(measured, ours.name, other.name)
    within(measured[ours.name], DUPLICATES, NEW)


if __name__ == "__main__":
    main()
