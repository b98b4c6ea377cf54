"""Redis in trouble while webhooks come in, a third of which the mail server defers once: how late is each e-mail?

    python -m tests.benchmarks.redis_away [refused|hanging|full|read-only|flushed ...] [--seconds 60] [--rate 20]

The Procfile's processes on throw-away PostgreSQL and Redis, on loopback; ends by itself.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from tests.factories import payload
from tests.servers import PostgreSQL, Redis
from tests.smtpd import Plan, Smtpd
from tests.stack import Stack, smtp_url

TROUBLES: dict[str, tuple[Callable[[Redis], object], Callable[[Redis], object]]] = {
    "refused": (Redis.kill9, Redis.start),
    "hanging": (Redis.freeze, Redis.thaw),
    "full": (lambda r: r.client().config_set("maxmemory", "1mb"), lambda r: r.client().config_set("maxmemory", 0)),
    "read-only": (lambda r: r.client().replicaof("127.0.0.1", 1), lambda r: r.client().replicaof("NO", "ONE")),
    "flushed": (Redis.flushall, Redis.flushall),
}
_deferred = re.compile(r"^(\S+) \S+ +deferred email_id=(\S+) .*retry_in=([0-9.]+)", re.M).findall


def run(
    database: str, redis: Redis, trouble: str, *, seconds: float, rate: float, release: bool = True
) -> dict[str, list[float]]:
    """Seconds from the 202, or from ``next_attempt_at``, to the mail server, for each e-mail due in that time.

    ``database``: its URL; ``release=False`` for one that has the schema.
    """
    begin, end = TROUBLES[trouble]
    with ExitStack() as close:
        server = close.enter_context(Smtpd(keep_commands=False))
        folder = close.enter_context(tempfile.TemporaryDirectory())
        urls = {"DATABASE_URL": database, "REDIS_URL": redis.url, "SMTP_URL": smtp_url(server)}
        times = {"RETRY_DELAY_SECONDS": "3", "SWEEP_SECONDS": "10"}
        stack = Stack(Path(folder), WEB_CONCURRENCY="1", **urls, **times)
        close.callback(stack.stop)
        _, (worker,) = stack.start(workers=1, release=release)
        begin(redis)
        answered = _post(stack, server, int(seconds * rate), 1 / rate)
        server.wait(lambda: len(server.accepted) >= len(answered), 30)
        end(redis)
        arrived = {a.recipients[0].partition("@")[0]: a.at for a in server.accepted}
        retries = {
            name: datetime.fromisoformat(at).timestamp() + float(delay)
            for at, name, delay in _deferred(worker.output())
        }
        assert "Traceback" not in worker.output(), worker.output()
    return {
        "first attempts": [arrived[name] - at for name, at in answered.items() if name not in retries],
        "retries": [arrived[name] - due for name, due in retries.items()],
    }


def _post(stack: Stack, server: Smtpd, count: int, pause: float) -> dict[str, float]:
    answered, began = {}, time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number * pause - time.monotonic()))
        name = f"m-{number}"
        if number % 3 == 0:
            server.script(f"{name}@example.com", Plan("rcpt", "451 4.7.1 greylisted"))
        assert stack.post(payload(name)).status == 202
        answered[name] = time.time()
    return answered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("troubles", nargs="*", default=list(TROUBLES), choices=[*TROUBLES, []])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=20)
    given = parser.parse_args()
    print(f"{'Redis':10} {'what':16} {'e-mails':>8} {'median s':>9} {'p99 s':>7} {'worst s':>8}")
    with ExitStack() as close:
        database, redis = PostgreSQL(durable=True), Redis()
        close.callback(database.close)
        close.callback(redis.close)
        for trouble in given.troubles:
            url = database.url(database.create_database())
            for what, late in run(url, redis, trouble, seconds=given.seconds, rate=given.rate).items():
                figures = statistics.median(late), sorted(late)[int(len(late) * 0.99)], max(late)
                print(
                    f"{trouble:10} {what:16} {len(late):8} "
                    + " ".join(f"{x:{w}.2f}" for x, w in zip(figures, (9, 7, 8), strict=True)),
                    flush=True,
                )


if __name__ == "__main__":
    main()
