"""From the answer 202 to the mail server's 250, at 50 e-mails a second: PostgreSQL with Redis, and SQLite.

    python -m tests.benchmarks.latency
    python -m tests.benchmarks.latency --rate 20 --seconds 30

The Procfile's web of two processes and one worker for each database; the mail server is that of the tests, which notes
when it took a message. It runs in the client's process, so both read the same clock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from tests.benchmarks.side_by_side import (
    Measured,
    Side,
    alternate,
    insist_on_quiet,
    options,
    percentile,
    summarise,
)
from tests.benchmarks.stand import Stand, commit_of
from tests.factories import payload
from tests.smtpd import Smtpd
from tests.stack import ROOT, Stack, smtp_url


@dataclass(frozen=True)
class Passed:
    """The moments of one e-mail: its webhook was sent and answered, the mail server took it."""

    asked: float
    answered: float
    taken: float


def post_paced(stack: Stack, server: Smtpd, prefix: str, seconds: float, a_second: float) -> list[Passed]:
    """So many webhooks a second, whether or not the one before is answered; returns when all were sent."""
    moments: dict[str, tuple[float, float]] = {}
    began = time.monotonic()

    def post(number: int) -> None:
        time.sleep(max(0.0, began + number / a_second - time.monotonic()))
        asked = time.time()
        assert stack.post(payload(f"{prefix}-{number}")).status == 202
        moments[f"{prefix}-{number}"] = asked, time.time()

    stack.together(4, range(round(seconds * a_second)), post)
    stack.wait_settled(600)
    taken = {mail.recipients[0].partition("@")[0]: mail.at for mail in server.accepted}
    return [Passed(asked, answered, taken[name]) for name, (asked, answered) in moments.items()]


def milliseconds(waits: Sequence[float]) -> tuple[float, float, float]:
    """Median, 99th percentile, worst."""
    return percentile(waits, 0.5) * 1000, percentile(waits, 0.99) * 1000, max(waits) * 1000


def side(name: str, stack: Stack, server: Smtpd, seconds: float, a_second: float) -> Side:
    numbers = count()
    stack.hang_up()

    def run() -> Measured:
        passed = post_paced(stack, server, f"round{next(numbers)}", seconds, a_second)
        stack.hang_up()
        after = milliseconds([one.taken - one.answered for one in passed])
        answer = milliseconds([one.answered - one.asked for one in passed])
        names = [f"{name}, 202 to 250, {what} ms" for what in ("median", "p99", "worst")]
        return dict(zip(names, after, strict=True)) | {f"{name}, webhook to 202, p99 ms": answer[1]}

    return Side(name, run)


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--rate", type=float, default=50, metavar="A_SECOND")
    parser.add_argument("--seconds", type=float, default=20, help="of each round (default 20)")
    given = parser.parse_args()
    insist_on_quiet(given.anyway)
    with Stand() as stand, Smtpd(keep_commands=False) as server:
        served = {"PostgreSQL": stand.deploy(workers=1, SMTP_URL=smtp_url(server))}
        served["SQLite"] = stand.deploy(workers=1, SMTP_URL=smtp_url(server), DATABASE_URL="", REDIS_URL="")
        sides = [side(name, stack, server, given.seconds, given.rate) for name, stack in served.items()]
        measured = alternate(sides, given.rounds, given.minutes)
    summarise(measured, f"{commit_of(ROOT)}, {given.seconds:g} s at {given.rate:g} a second in a round")


if __name__ == "__main__":
    main()
