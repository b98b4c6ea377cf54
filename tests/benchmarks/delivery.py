"""E-mails delivered a second: ours beside what else one would take, or beside another checkout of this project.

    python -m tests.benchmarks.delivery                                    all four, in turn
    python -m tests.benchmarks.delivery --against post_office --rounds 11  django-post_office, 2 processes of 4 threads
    python -m tests.benchmarks.delivery --threads 16                       all four, with 16 threads in each process
    python -m tests.benchmarks.delivery --against celery                   Celery, one task for each e-mail, 2 times 4
    python -m tests.benchmarks.delivery --against loop loops               one bare smtplib loop beside one worker; two
    python -m tests.benchmarks.delivery --beside CHECKOUT                  another checkout, on the same servers

The same PostgreSQL with fsync, Redis and smtp-sink; bodies of 300 bytes. The backlog is stored while nothing is sent;
the clock runs from the start of delivery until the last outcome is kept. Ours commits each outcome on its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from tests.benchmarks import peers
from tests.benchmarks.side_by_side import Measured, Side, alternate, compare, insist_on_quiet, options
from tests.benchmarks.stand import BODY, Stand, commit_of
from tests.factories import payload
from tests.servers import wait_for
from tests.stack import ROOT, Stack

RATE, WHOLE_RUN = "e-mails/s", "e-mails/s with the start-up"
MAX_SECONDS = 240


class Backlog:
    """The Procfile's web and so many of its workers, paused until the backlog is there."""

    def __init__(self, stand: Stand, code: Path, workers: int, threads: int = 4, **environ: str) -> None:
        self.stand, self.workers, self.threads = stand, workers, threads
        environ |= {"WORKER_THREADS": str(threads), "WEB_CONCURRENCY": "1"}
        self.stack: Stack = stand.deploy(code, workers=workers, **environ)
        self._name = self.stack.environ["DATABASE_URL"].rpartition("/")[2]
        self._numbers = count()

    def store(self, emails: int) -> None:
        assert self.stack.post({}, "/delivery/pause").status == 200
        for start in range(0, emails, 1000):
            some = [payload(f"m-{next(self._numbers)}", body=BODY) for _ in range(min(1000, emails - start))]
            assert self.stack.post({"emails": some}, "/webhook/email/batch").status == 200

    def start(self) -> None:
        assert self.stack.post({}, "/delivery/resume").status == 200

    def wait_until_recorded(self, taken: int) -> None:
        """Until smtp-sink has so many messages and the last outcome is committed."""
        _wait_until_taken(self.stand, taken)
        unsent = "SELECT count(*) FROM emails WHERE status IN ('pending', 'sending')"
        with self.stand.postgresql.connect(self._name) as connection:
            wait_for(lambda: connection.execute(unsent).fetchone() == (0,), 30, "the last outcome", pause=0.005)

    def run(self, emails: int) -> Measured:
        self.store(emails)
        before, began = self.stand.sink.taken, time.perf_counter()
        self.start()
        self.wait_until_recorded(before + emails)
        rate = emails / (time.perf_counter() - began)
        return {RATE: rate, WHOLE_RUN: rate}


def _wait_until_taken(stand: Stand, messages: int) -> None:
    wait_for(
        lambda: stand.sink.taken >= messages, MAX_SECONDS,
        lambda: f"{messages} messages, of which there are {stand.sink.taken}", pause=0.005,
    )  # fmt: skip


def post_office(stand: Stand, emails: int, threads: int) -> Side:
    tools = peers.environment()
    environ = {**stand.addresses(), "FOLDER": str(stand.new_folder()), "THREADS": str(threads)}

    def do(*arguments: str) -> float:
        began = time.perf_counter()
        peers.run(tools, "post_office_site.py", *arguments, environ=environ)
        return time.perf_counter() - began

    def run() -> Measured:
        start_up = do("send")
        do("queue", str(emails), BODY)
        before = stand.sink.taken
        seconds = do("send")
        assert stand.sink.taken - before == emails
        return {RATE: emails / (seconds - start_up), WHOLE_RUN: emails / seconds}

    do("migrate")
    return Side(f"2 × {threads} of {peers.versions(tools, 'django-post_office', 'Django')}", run)


def celery(stand: Stand, emails: int, threads: int) -> Side:
    tools = peers.environment()
    environ = {**stand.addresses(), "PYTHONPATH": str(peers.HERE)}
    for number in range(2):
        command = (
            f"{tools}/celery -A celery_app worker --pool prefork --concurrency {threads} --hostname w{number}@benchmark"
        )
        command += " --without-gossip --without-mingle --without-heartbeat --loglevel INFO"
        process = peers.spawn(f"celery {number}", command, stand.new_folder(), environ, " ready.")
        stand.at_end(process.kill9)

    def run() -> Measured:
        peers.run(tools, "celery_app.py", str(emails), BODY, environ=environ)
        before, began = stand.sink.taken, time.perf_counter()
        stand.queue(environ["REDIS_URL"]).rename("held", "celery")
        _wait_until_taken(stand, before + emails)
        return {RATE: emails / (time.perf_counter() - began)}

    return Side(f"2 × {threads} of {peers.versions(tools, 'celery')}, a task for each e-mail", run)


def loops(stand: Stand, emails: int, processes: int) -> Side:
    environ, tools = stand.addresses(), Path(sys.executable).parent

    def run() -> Measured:
        seconds = peers.run(tools, "smtplib_loop.py", str(emails), str(processes), BODY, environ=environ)
        return {RATE: emails / float(seconds)}

    return Side(f"{processes} bare smtplib loop(s), Python {sys.version.split()[0]}", run)


Other = Callable[[Stand, int, int], Side]

OTHERS: dict[str, tuple[int, int, Other]] = {
    "post_office": (2, 20_000, post_office),
    "celery": (2, 5_000, celery),
    "loop": (1, 5_000, lambda stand, emails, _: loops(stand, emails, 1)),
    "loops": (2, 5_000, lambda stand, emails, _: loops(stand, emails, 2)),
}
"""Our worker processes beside it, e-mails in a round, and how it is started."""


def pairs(
    stand: Stand, against: list[str], beside: Path | None, emails: int | None, threads: int
) -> Iterator[tuple[Side, Side]]:
    if beside:
        size, old = emails or 5_000, Backlog(stand, beside, 2, threads)
        new = Backlog(stand, ROOT, 2, threads)
        yield _side(new, ROOT, size), _side(old, beside, size)
        return
    ours: dict[int, Backlog] = {}
    for name in against:
        workers, usual, start = OTHERS[name]
        ours[workers] = ours.get(workers) or Backlog(stand, ROOT, workers, threads)
        yield _side(ours[workers], ROOT, emails or usual), start(stand, emails or usual, threads)


def _side(ours: Backlog, code: Path, emails: int) -> Side:
    return Side(f"{ours.workers} worker(s) of {ours.threads} threads at {commit_of(code)}", lambda: ours.run(emails))


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--against", nargs="+", choices=OTHERS, default=list(OTHERS))
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another checkout of this project")
    parser.add_argument("--emails", type=int, help="in a round (default 20,000 beside post_office, else 5,000)")
    parser.add_argument("--threads", type=int, default=4, help="in each process, or Celery's processes (default 4)")
    given = parser.parse_args()
    insist_on_quiet(given.anyway)
    with Stand() as stand:
        minutes = given.minutes / (1 if given.beside else len(given.against))
        for ours, other in pairs(stand, given.against, given.beside, given.emails, given.threads):
            compare(alternate([ours, other], given.rounds, minutes), ours.name, other.name)


if __name__ == "__main__":
    main()
