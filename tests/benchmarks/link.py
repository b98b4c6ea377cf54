"""E-mails a second over a link with a round trip, against what two round trips for each e-mail allow.

    python -m tests.benchmarks.link                     1, 4, 16 and 64 threads over 50 ms
    python -m tests.benchmarks.link --threads 64 --round-trip 0.1

One worker process for each number of threads, PostgreSQL with fsync, and smtp-sink behind a relay that hands on
everything half a round trip later. Measured while the middle four fifths of a backlog go out; the limit is reached by
a sender that needs no time of its own: MAIL, RCPT and DATA in one round trip, the message in another.
"""

from __future__ import annotations

import time

from tests.benchmarks.cost import cpu_seconds
from tests.benchmarks.delay import DelayedLink
from tests.benchmarks.delivery import Backlog
from tests.benchmarks.side_by_side import Measured, Side, alternate, insist_on_quiet, options, summarise
from tests.benchmarks.stand import Stand, commit_of
from tests.servers import wait_for
from tests.stack import ROOT

ROUND_TRIPS = 2


def across(stand: Stand, link: DelayedLink, threads: int, round_trip: float, seconds: float) -> Side:
    backlog = Backlog(stand, ROOT, 1, threads, SMTP_URL=f"smtp://127.0.0.1:{link.port}")
    limit = threads / (ROUND_TRIPS * round_trip)
    emails = round(limit * seconds)

    def run() -> Measured:
        backlog.store(emails)
        before, cpu = stand.sink.taken, cpu_seconds(link.pid)
        backlog.start()
        began = _when(stand, before + emails // 10)
        seconds = _when(stand, before + emails * 9 // 10) - began
        backlog.wait_until_recorded(before + emails)
        rate = (emails * 9 // 10 - emails // 10) / seconds
        return {
            f"{threads} threads, e-mails/s": rate,
            f"{threads} threads, of the limit of {limit:,.0f}": rate / limit,
            f"{threads} threads, CPU of the relay, % of a core": 100 * (cpu_seconds(link.pid) - cpu) / seconds,
        }

    return Side(str(threads), run)


def _when(stand: Stand, taken: int) -> float:
    wait_for(lambda: stand.sink.taken >= taken, 240, lambda: f"{taken}, at {stand.sink.taken}", pause=0.002)
    return time.perf_counter()


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--round-trip", type=float, default=0.05, metavar="SECONDS")
    parser.add_argument("--seconds", type=float, default=8, help="that a round takes at the limit (default 8)")
    given = parser.parse_args()
    insist_on_quiet(given.anyway)
    with Stand() as stand:
        link = DelayedLink(stand.sink.port, given.round_trip)
        stand.at_end(link.close)
        sides = [across(stand, link, threads, given.round_trip, given.seconds) for threads in given.threads]
        measured = alternate(sides, given.rounds, given.minutes)
    summarise(measured, commit_of(ROOT))


if __name__ == "__main__":
    main()
