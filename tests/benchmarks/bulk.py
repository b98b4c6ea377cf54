"""Many dead letters replayed by a filter at a rate, among fresh e-mail, while workers are killed and all is restarted.

    python -m tests.benchmarks.bulk                              100,000 at 600 a second, in less than five minutes
    python -m tests.benchmarks.bulk --letters 3000 --rate 100

On PostgreSQL with fsync, Redis and Postfix's smtp-sink, all on loopback, by two workers of four threads. A third of the
way through one of the workers is killed, two thirds of the way through everything is ended and started again. Fresh
e-mail waits from its acceptance to the record of its outcome, both told by the database. Then 2,000 are replayed to a
mail server that refuses them again at once, first at the rate and then without one: each must be tried once.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psycopg import Connection

from tests.benchmarks.stand import Stand
from tests.factories import payload
from tests.servers import SmtpSink, wait_for
from tests.smtpd import Smtpd
from tests.stack import Stack

FRESH_A_SECOND = 20
REFUSED_AGAIN = 2_000

LETTERS = (
    """INSERT INTO emails (email_id, fingerprint, recipient, subject, body, size, message_id, status, priority,
         on_uncertain, attempts, received_at, last_error)
       SELECT 'full-' || n, 'f', 'full-' || n || '@domain' || mod(n, 3) || '.example', 'Your order',
         'It is on its way.', 20, '<full-' || n || '@example.com>', 'failed', 1, 'hold', 1, now(), '552 5.2.2 full'
       FROM generate_series(1, %(count)s) n""",
    """INSERT INTO attempts (email, outcome, code, enhanced, text, domain, at)
       SELECT id, 'rejected', 552, '5.2.2', '552 5.2.2 mailbox full', 'x', now() FROM emails""",
    """INSERT INTO dead_letters (email, reason, error, attempts, created_at)
       SELECT id, 'rejected', '552 5.2.2 mailbox full', 1, now() FROM emails""",
    "ANALYZE",
)
WAITS = """SELECT percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM sent_at - received_at))
           FROM emails WHERE email_id LIKE %(phase)s AND status = 'sent'"""


RUNNING = "SELECT id FROM actions WHERE state = 'running'"
TRIED = "SELECT count(*) FROM attempts GROUP BY email"


class KeepingSink(SmtpSink):
    """Which tells how often it took what for whom."""

    def command(self) -> list[str]:
        binary, *rest = super().command()
        return [binary, "-D", str(self.folder / "mails"), *rest]

    def copies(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for path in Path(self.folder).glob("mails*"):
            with open(path, errors="replace") as mails:
                found.update(re.findall(r"^X-Rcpt-Args: <([^@]+)@", mails.read(), re.MULTILINE))
        return found


class Fresh:
    """So many new e-mails a second, whatever happens meanwhile; ``phase`` begins their ids."""

    def __init__(self, stack: Stack) -> None:
        self.stack, self.phase, self.posted = stack, "alone", 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for number in itertools.count():
            if self._stop.wait(1 / FRESH_A_SECOND):
                break
            self.stack.post_until_answered(payload(f"{self.phase}-{number}", user=f"{self.phase}-{number}@x.example"))
            self.posted += 1
        self.stack.hang_up()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


def run(stand: Stand, letters: int, rate: float) -> dict[str, object]:
    with contextlib.closing(KeepingSink()) as sink:
        stack = stand.deploy(workers=2, SMTP_URL=f"smtp://127.0.0.1:{sink.port}", LOG_LEVEL="WARNING")
        with _filled(stand, stack, letters) as connection:
            fresh = Fresh(stack)
            try:
                time.sleep(15)
                seconds, started = _replay(stack, fresh, letters, rate)
            finally:
                fresh.end()
            stats = stack.wait_settled(120)
            return _told(connection, sink.copies(), stats) | {"marked in, s": started, "replay took, s": seconds}


@contextlib.contextmanager
def _filled(stand: Stand, stack: Stack, letters: int) -> Iterator[Connection[Any]]:
    with stand.postgresql.connect(stack.environ["DATABASE_URL"].rpartition("/")[2]) as connection:
        for statement in LETTERS:
            connection.execute(statement, {"count": letters})
        yield connection


def again(stand: Stand, letters: int, rate: float) -> dict[str, object]:
    """How often each was tried, whose new letter is one that the same filter would find."""
    told: dict[str, object] = {}
    with Smtpd(keep_commands=False, refuse=lambda _recipient: "552 5.2.2 mailbox full") as server:
        stack = stand.deploy(workers=2, SMTP_URL=f"smtp://127.0.0.1:{server.port}", LOG_LEVEL="WARNING")
        with _filled(stand, stack, letters) as connection:
            for before, (how, given) in enumerate((("at the rate", {"rate": rate}), ("without one", {})), 1):
                reply = stack.post({"code": 552, "limit": letters, **given}, "/stats/dead-letters/replay")
                assert reply.status == (202 if given else 200), reply
                wait_for(lambda: not connection.execute(RUNNING).fetchall(), 60, "the end of it", pause=0.2)
                stats = stack.wait_settled(60)
                tried = Counter(count - before for (count,) in connection.execute(TRIED))
                told[f"refused again, {how}: tried so often, so many"] = dict(tried)
                assert stats["dead_letters"] == letters, stats
    return told


def _replay(stack: Stack, fresh: Fresh, letters: int, rate: float) -> tuple[float, float]:
    began = time.monotonic()
    body = {"code": 552, "error": "mailbox full", "limit": letters, "rate": rate}
    action = stack.post(body, "/stats/dead-letters/replay").json
    marked = time.monotonic() - began
    assert action["total"] == letters, action
    fresh.phase = "beside"
    path = f"/actions/{action['id']}"

    def wait_for_part(part: float) -> None:
        wait_for(lambda: stack.get(path).json["done"] >= part * letters, 200, f"{part:.0%} to be moved", pause=0.2)

    wait_for_part(1 / 3)
    fresh.phase = "killed"
    workers = [one for one in stack.processes if one.name == "worker"]
    workers[0].kill9()
    wait_for_part(2 / 3)
    for process in stack.processes:
        process.term()
    for process in stack.processes:
        process.wait(40)
    stack.start(workers=2, release=False)
    wait_for_part(0.75)
    fresh.phase = "again"
    wait_for(lambda: stack.get(path).json["state"] == "done", 200, "the end of it", pause=0.2)
    return round(time.monotonic() - began, 1), round(marked, 2)


def _told(connection: Connection[Any], copies: Counter[str], stats: dict[str, Any]) -> dict[str, object]:
    full = Counter({name: count for name, count in copies.items() if name.startswith("full-")})
    sent = "SELECT count(*) FROM emails WHERE email_id LIKE 'full-%' AND status = 'sent'"
    told: dict[str, object] = {
        "letters sent": connection.execute(sent).fetchone()[0],  # type: ignore[index]
        "taken by the server once": sum(count == 1 for count in full.values()),
        "taken more than once": sum(count > 1 for count in copies.values()),
        "uncertain, in the hands of the killed worker": stats["dead_letters"],
        "fresh ones": stats["received"] - full.total(),
    }
    for phase in ("alone", "beside", "killed", "again"):
        (waits,) = connection.execute(WAITS, {"phase": f"{phase}-%"}).fetchone()  # type: ignore[misc]
        told[f"fresh ones wait ms, {phase}: median, 99th percentile"] = [round(1000 * one, 1) for one in waits]
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--letters", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=600)
    given = parser.parse_args()
    with Stand() as stand:
        table = run(stand, given.letters, given.rate)
        table |= again(stand, min(given.letters, REFUSED_AGAIN), given.rate)
        for name, figure in table.items():
            print(f"{name:60}  {figure}")


if __name__ == "__main__":
    main()
