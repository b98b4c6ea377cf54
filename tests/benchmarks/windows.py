"""Windows under load: who is first when many come at once, and what an alert storm costs beside plain e-mail.

    python -m tests.benchmarks.windows              rounds of 64 simultaneous clients, then the storm
    python -m tests.benchmarks.windows --rounds 20  fewer of them
    python -m tests.benchmarks.windows --storm      the storm alone

A round mixes posts, batches, cancels and erasures of a few keys, and holds what was stored against what was answered.
The storm is 10,000 e-mails under as many ids with one key, by 64 clients in this process, beside as many without a
window and as many that are only observed, in turn.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import Engine, text

from emailsvc import outbox, reports
from emailsvc.app import create_app
from emailsvc.db import schema
from emailsvc.intake.payload import NewEmail
from emailsvc.settings import config as configuration
from emailsvc.settings.config import Config
from tests.factories import new_email
from tests.servers import PostgreSQL
from tests.storm import Storm

ROUNDS = {"postgresql": 500, "sqlite": 100}
CLIENTS = 64
ALERTS = 10_000
TURNS = 3

_numbers = itertools.count()


@contextmanager
def database(name: str, folder: Path) -> Iterator[tuple[Engine, Config, Config]]:
    """An empty one; with windows that are enforced, and observed."""
    with tempfile.TemporaryDirectory(dir=folder) as instance:
        if name == "sqlite":
            yield from _migrated(f"sqlite:///{instance}/emailsvc.db", Path(instance))
            return
        with closing(PostgreSQL()) as server:
            yield from _migrated(server.url(server.create_database()), Path(instance))


def _migrated(url: str, instance: Path) -> Iterator[tuple[Engine, Config, Config]]:
    modes = (configuration.load({"DATABASE_URL": url, "DEDUPE_MODE": m}, instance) for m in ("enforce", "observe"))
    enforce, observe = modes
    app = create_app(enforce)
    schema.upgrade(app)
    engine: Engine = app.extensions["emailsvc"].engine
    yield engine, enforce, observe
    engine.dispose()


def compete(engine: Engine, config: Config, rounds: int) -> None:
    storm = Storm(engine, config, CLIENTS)
    began = time.monotonic()
    storm.run(rounds)
    assert reports.violations(engine, config) == []
    seen = ", ".join(f"{count:,} {what}" for what, count in sorted(storm.seen.items()))
    print(f"  {rounds} rounds of {CLIENTS} clients in {time.monotonic() - began:.0f} s: {seen}")
    if not config.is_sqlite:
        assert _deadlocks(engine) == 0, "PostgreSQL broke a deadlock"


def _deadlocks(engine: Engine) -> int:
    engine.dispose()  # a session tells the statistics at its end
    with engine.connect() as connection:
        count = connection.execute(text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"))
        return int(count.scalar_one())


def alert_storm(engine: Engine, enforce: Config, observe: Config) -> None:
    plain, alert = {}, {"dedupe_window_seconds": 3600}
    kinds = {"plain": (enforce, plain), "absorbed": (enforce, alert), "observed": (observe, alert)}
    for turn in range(TURNS):
        rates = {kind: _rate(engine, config, f"{kind} {turn}", fields) for kind, (config, fields) in kinds.items()}
        told = ", ".join(f"{kind} {rate:,.0f}" for kind, rate in rates.items())
        print(f"  accepted a second: {told}; absorbed {rates['absorbed'] / rates['plain']:.0%} of plain")
    stats = reports.stats(engine)
    assert stats.absorbed == stats.would_absorb == TURNS * (ALERTS - 1), "all but one of each storm, counted alike"


def _rate(engine: Engine, config: Config, key: str, fields: dict[str, object]) -> float:
    emails = [_alert(key, fields) for _ in range(ALERTS)]
    reception = outbox.Reception(engine, config, lambda: None)
    with ThreadPoolExecutor(CLIENTS) as pool:
        began = time.monotonic()
        answers = list(pool.map(reception.accept, emails))
        seconds = time.monotonic() - began
    accepted = sum(answer.status == "accepted" for answer in answers)
    assert accepted == (1 if fields and config.dedupe_mode == "enforce" else ALERTS), accepted
    return ALERTS / seconds


def _alert(key: str, fields: dict[str, object]) -> NewEmail:
    return new_email(f"alert-{next(_numbers)}", user="ops@example.com", subject=f"Disk full: {key}", **fields)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--storm", action="store_true")
    asked = parser.parse_args()
    for name, rounds in ROUNDS.items():
        print(name)
        run: list[Callable[[Engine, Config, Config], None]] = [alert_storm]
        if not asked.storm:
            run.insert(0, lambda engine, config, _, rounds=rounds: compete(engine, config, asked.rounds or rounds))
        for one in run:
            with database(name, Path(tempfile.gettempdir())) as made:
                one(*made)


if __name__ == "__main__":
    main()
