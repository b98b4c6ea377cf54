"""A rolling deploy under load: processes of an older commit and of this one on the same database, queue, mail server.

    python -m tests.benchmarks.deploy [--before 1436620]

The older release's web and workers run, the schema is upgraded under them, new workers join, one of each is killed,
the web is replaced, the old workers leave. Each e-mail must be taken once. On loopback, with throw-away servers.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import subprocess
import tarfile
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.factories import payload
from tests.servers import PostgreSQL, Redis
from tests.smtpd import Plan, Smtpd, TakenMessage
from tests.stack import ROOT, SHORT, Process, Stack, copies, smtp_url


class Deploy:
    def __init__(self, stack: Stack, old_code: Path) -> None:
        self.stack, self.old_code = stack, old_code
        self.posted: dict[str, float] = {}

    def old(self, name: str) -> Process:
        log = self.stack.logs / f"old-{name}-{len(self.stack.processes)}.log"
        process = Process(name, self.stack.commands[name], self.old_code, self.stack.environ, log)
        self.stack.processes.append(process)
        return process

    def post(self, count: int) -> None:
        for number in range(len(self.posted), len(self.posted) + count):
            self.stack.post_until_answered(payload(f"m-{number}"))
            self.posted[f"m-{number}"] = time.time()
            time.sleep(0.01)

    def run(self) -> None:
        subprocess.run(
            ["flask", "db", "upgrade"], cwd=self.old_code, env=self.stack.environ, check=True, capture_output=True
        )
        web, first, second = self.old("web"), self.old("worker"), self.old("worker")
        self.stack.wait_ready()
        self.post(100)
        self.stack.release()
        self.post(100)
        new = self.stack.spawn("worker")
        self.post(200)
        first.kill9()
        new.kill9()
        self.stack.spawn("worker")
        self.post(200)
        self.stack.hang_up()
        web.term()
        web.wait(40)
        self.stack.spawn("web")
        self.stack.wait_ready()
        self.post(200)
        second.term()
        self.post(100)


def unpack(commit: str, folder: Path) -> Path:
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="1436620")
    commit = parser.parse_args().before
    rng = random.Random(3)

    def decide(_mail: TakenMessage) -> Plan | None:
        return Plan("dot", "451 4.3.0 later") if rng.random() < 0.1 else None

    with ExitStack() as close:
        folder = Path(close.enter_context(tempfile.TemporaryDirectory()))
        server = close.enter_context(Smtpd(decide=decide, mail_delay=0.01))
        database, redis = PostgreSQL(durable=True), Redis()
        close.callback(database.close)
        close.callback(redis.close)
        urls = {"DATABASE_URL": database.url(database.create_database()), "REDIS_URL": redis.url}
        stack = Stack(
            folder / "new", SMTP_URL=smtp_url(server), RETRY_DELAY_SECONDS="1", WEB_CONCURRENCY="1", **urls, **SHORT
        )
        close.callback(stack.stop)
        deploy = Deploy(stack, unpack(commit, folder / "old"))
        deploy.run()
        stats = stack.wait_settled(60)
        taken, letters = copies(server), stack.dead_letters()
        arrived = {mail.recipients[0].partition("@")[0]: mail.at for mail in server.accepted}
        waits = sorted(arrived[name] - at for name, at in deploy.posted.items() if name in arrived)
        uncertain = {letter["email_id"] for letter in letters if letter["reason"] == "uncertain"}
        print(
            f"posted {len(deploy.posted)}, sent {stats['sent']}, uncertain {len(uncertain)} (two workers were killed)"
        )
        print(
            f"doubled {sum(n > 1 for n in taken.values())}, lost {len(deploy.posted.keys() - taken.keys() - uncertain)}"
        )
        median, p99 = statistics.median(waits), waits[int(len(waits) * 0.99)]
        print(f"webhook to mail server, s: median {median:.3f}, p99 {p99:.2f}, worst {waits[-1]:.2f}")
        print(f"tracebacks in the logs: {sum(p.output().count('Traceback') for p in stack.processes)}")


if __name__ == "__main__":
    main()
