"""Delivery in special situations, as the Procfile runs it, on throw-away servers. Each prints its own table.

    python -m tests.benchmarks.scenarios priority     20,000 low in the queue, then 100 high: how long do those wait?
    python -m tests.benchmarks.scenarios rate         RATE_LIMIT_PER_SECOND=50 over two workers of four threads
    python -m tests.benchmarks.scenarios outage       the mail server away for three minutes at 20 mails a second
    python -m tests.benchmarks.scenarios replay       300 letters of full mailboxes replayed among 50 fresh mails/s
    python -m tests.benchmarks.scenarios day          an operator's day: each task by its route and by its command

Everything is on loopback and ends by itself, within seven minutes at most.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator

from tests.benchmarks.day import day
from tests.benchmarks.latency import milliseconds, post_paced
from tests.benchmarks.stand import deployed
from tests.factories import payload
from tests.servers import free_port, wait_for
from tests.smtpd import Smtpd
from tests.stack import Stack, smtp_url

Table = dict[str, object]


def _post_batches(stack: Stack, prefix: str, count: int, **fields: object) -> None:
    for start in range(0, count, 1000):
        emails = [payload(f"{prefix}-{n}", **fields) for n in range(start, min(start + 1000, count))]
        reply = stack.post({"emails": emails}, "/webhook/email/batch")
        assert reply.status == 200, reply


def priority() -> Table:
    with Smtpd(keep_commands=False) as server, deployed(smtp_url(server)) as stack:
        began = time.time()
        _post_batches(stack, "low", 20_000, priority="low")
        posted: dict[str, float] = {}
        for number in range(100):
            posted[f"high-{number}"] = time.time()
            assert stack.post(payload(f"high-{number}", priority="high")).status == 202
            time.sleep(0.02)
        ahead = stack.stats()["pending"]
        stack.wait_settled(300)
        arrived = {a.recipients[0].partition("@")[0]: a.at for a in server.accepted}
        waits = sorted(arrived[name] - moment for name, moment in posted.items())
        backlog = max(arrived.values()) - began
        return {
            "low ones still waiting when the last high one was posted": ahead,
            "backlog takes, s": round(backlog, 1),
            "high ones wait, median s": round(statistics.median(waits), 3),
            "high ones wait, 99th percentile s": round(waits[98], 3),
            "99th percentile as a share of the backlog": f"{waits[98] / backlog:.2%}",
        }


def rate() -> Table:
    with Smtpd(keep_commands=False) as server:
        with deployed(smtp_url(server), RATE_LIMIT_PER_SECOND="50") as stack:
            _post_batches(stack, "m", 1200)
            server.wait(lambda: len(server.accepted) >= 1050, 60)
        times = sorted(a.at for a in server.accepted)
    times = [t for t in times if t - times[0] < 20]
    windows = [bisect_left(times, t + 1) - n for n, t in enumerate(times) if t + 1 <= times[-1]]
    return {
        "mails in 20 s": len(times),
        "mean a second": round(len(times) / 20, 2),
        "most in any window of a second": max(windows),
        "least in any window of a second": min(windows),
    }


def outage(seconds: float = 180, a_second: int = 20) -> Table:
    port = free_port()
    probes: list[float] = []
    with deployed(f"smtp://127.0.0.1:{port}", RETRY_DELAY_SECONDS="5") as stack:
        stop = threading.Event()
        sender = threading.Thread(target=_keep_posting, args=(stack, stop, a_second))
        with _closing_listener(port, probes):
            sender.start()
            time.sleep(seconds)
            during = stack.stats()
        with Smtpd(port=port, keep_commands=False) as server:
            back = time.monotonic()
            wait_for(lambda: stack.stats()["delivery"]["state"] == "running", 60, "the outage to be over")
            seen = time.monotonic() - back
            wait_for(
                lambda: (s := stack.stats())["pending"] <= a_second and s["sent"] > 0, 120, "the backlog to be sent"
            )
            caught_up = time.monotonic() - back
            stop.set()
            sender.join()
            after = stack.wait_settled(60)
            taken = len(server.accepted)
    first = probes[0]
    return {
        "waiting when the server came back": during["pending"],
        "attempts burned": after["failed_attempts"],
        "dead letters": after["dead_letters"],
        "connections tried in the first second": sum(t - first < 1 for t in probes),
        "probes after it, at seconds": [round(t - first) for t in probes if t - first >= 1],
        "state while away": f"{during['delivery']['state']}: {during['delivery']['reason']}",
        "noticed that it is back after, s": round(seen, 1),
        "backlog sent after, s": round(caught_up, 1),
        "accepted, sent, taken by the server": (after["received"], after["sent"], taken),
    }


def _keep_posting(stack: Stack, stop: threading.Event, a_second: int) -> None:
    number, began = 0, time.monotonic()
    while not stop.is_set():
        assert stack.post(payload(f"m-{number}")).status == 202
        number += 1
        stop.wait(max(0.0, began + number / a_second - time.monotonic()))
    stack.hang_up()


@contextlib.contextmanager
def _closing_listener(port: int, seen: list[float]) -> Iterator[None]:
    """A mail server that is away: it counts who comes and closes the door."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(0.1)
        stop = threading.Event()

        def turn_away() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, _ = listener.accept()
                    seen.append(time.monotonic())
                    connection.close()

        thread = threading.Thread(target=turn_away)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def replay(letters: int = 300, seconds: float = 60, a_second: int = 50) -> Table:
    """The same load twice on one stack: first alone, then with the replay."""

    def refuse(recipient: str) -> str | None:
        return "552 5.2.2 mailbox full" if recipient.startswith("full-") else None

    with Smtpd(keep_commands=False, refuse=refuse) as server, deployed(smtp_url(server)) as stack:
        full = [payload(f"full-{n}", user=f"full-{n}@domain{n % 3}.example") for n in range(letters)]
        assert stack.post({"emails": full}, "/webhook/email/batch").status == 200
        wait_for(lambda: stack.stats()["dead_letters"] == letters, 120, "the first refusals")
        alone = _waits(stack, server, "alone", seconds, a_second)
        states: set[str] = set()
        answers: list[int] = []

        def replay_in_between() -> None:
            time.sleep(seconds / 6)
            answers.append(stack.post({"reason": "rejected"}, "/stats/dead-letters/replay").json["replayed"])
            until = time.monotonic() + seconds / 2
            while time.monotonic() < until:
                states.add(stack.stats()["delivery"]["state"])
                time.sleep(0.1)
            stack.hang_up()

        operator = threading.Thread(target=replay_in_between)
        operator.start()
        beside = _waits(stack, server, "beside", seconds, a_second)
        operator.join()
        after = stack.wait_settled(60)
        logged = "".join(process.output() for process in stack.processes)
    return {
        "replayed": answers[0],
        "refused again, and dead letters": (after["failed_attempts"] - letters, after["dead_letters"]),
        "states of delivery seen in the meantime": sorted(states),
        "outages in the log": logged.count("outage_began"),
        "fresh mails sent of posted": (after["sent"], 2 * round(seconds * a_second)),
        "without the replay, fresh wait ms: median, 99th percentile, most": _spread(alone),
        "with it": _spread(beside),
    }


def _waits(stack: Stack, server: Smtpd, prefix: str, seconds: float, a_second: int) -> list[float]:
    """How long each of so many mails a second took from its webhook to the mail server."""
    return [one.taken - one.asked for one in post_paced(stack, server, prefix, seconds, a_second)]


def _spread(waits: list[float]) -> list[float]:
    return [round(figure, 1) for figure in milliseconds(waits)]


SCENARIOS: dict[str, Callable[[], Table]] = {
    "priority": priority,
    "rate": rate,
    "outage": outage,
    "replay": replay,
    "day": day,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=SCENARIOS)
    table = SCENARIOS[parser.parse_args().scenario]()
    width = max(map(len, table))
    for name, figure in table.items():
        print(f"{name:{width}}  {figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
