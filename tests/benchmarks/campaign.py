"""The long fault campaign: processes are killed at random moments, and every e-mail is accounted for.

    python tests/benchmarks/campaign.py --database postgresql --kills 1000 --emails 40000 --seed 1 --out campaign.jsonl
    python tests/benchmarks/campaign.py --database sqlite --kills 300 --emails 12000 --seed 1 --out campaign.jsonl
    python tests/benchmarks/campaign.py --database postgresql --on-uncertain retry --kills 100 --emails 4000
    python tests/benchmarks/campaign.py --database postgresql --term --kills 500 --emails 20000
    python tests/benchmarks/campaign.py --database postgresql --reports --kills 200 --emails 8000

Each run starts throw-away servers, a mail server in a process of its own that writes down what it took before it
answers, and the Procfile's processes with short leases. The work is split into runs of at most 100 kills with the seeds
S, S+1, …; with ``--out`` a finished run is one JSON line, and runs that are there already are not repeated, so a
campaign may be interrupted and gone on with. The exit status is 1 when an e-mail was doubled, lost, or, with
``--term``, uncertain. With ``--reports`` the mail server reports what it took, and all of that must be ``sent``.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psycopg

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.factories import payload  # noqa: E402
from tests.servers import MissingServer, PostgreSQL, Redis, start_process, wait_for  # noqa: E402
from tests.stack import Process, Stack  # noqa: E402

RUN_KILLS = 100
SENDERS = 4
REPEATS = 0.2
"""Share of the e-mails that their sender posts once more."""

MOMENT = (0.1, 0.9)
"""How long, in seconds, until the next kill; a random moment for the victim."""

REPLY_SECONDS = 0.1
"""The mail server's pause before its answer to a dot: the moment at which nobody knows is long enough to be hit."""

REPORT_SECRET = "a-secret-of-the-campaign"
MAX_REPORTED = 100
"""At a time."""

SHORT_LEASES = {
    "SMTP_TIMEOUT_SECONDS": "1",
    "SMTP_REPLY_TIMEOUT_SECONDS": "1",
    "LEASE_SECONDS": "3",
    "SWEEP_SECONDS": "1",
    "RETRY_DELAY_SECONDS": "1",
    "LOG_LEVEL": "WARNING",
}


@dataclass(frozen=True)
class Plan:
    """What one run does; with the seed it names the run in the file of results."""

    database: str
    on_uncertain: str
    term: bool
    kills: int
    emails: int
    seed: int
    reports: bool = False


@dataclass(frozen=True)
class Tally:
    """What became of the e-mails answered 2xx, by the mail server's own log and the service's dead letters."""

    kills: int
    emails: int
    sent: int
    doubled: int
    lost: int
    uncertain: int  # e-mails that had an uncertain outcome, whatever became of them
    false_alarms: int  # of the e-mails held as uncertain those that the server had not taken
    other_dead_letters: int
    miscounted: int
    seconds: float
    unsettled: int = 0  # held as uncertain though the server had taken it
    settled: int = 0  # uncertain ones that became sent by a report

    def failures(self, plan: Plan) -> list[str]:
        found = []
        if self.lost:
            found.append(f"{self.lost} lost")
        allowed = self.uncertain if plan.on_uncertain == "retry" else 0
        if self.doubled > allowed:
            found.append(f"{self.doubled} doubled, and {allowed} would be fair")
        if plan.term and self.uncertain:
            found.append(f"{self.uncertain} uncertain after nothing but SIGTERM")
        if plan.reports and self.unsettled:
            found.append(f"{self.unsettled} taken and reported, and not sent")
        if self.other_dead_letters:
            found.append(f"{self.other_dead_letters} dead letters for another reason")
        if self.miscounted:
            found.append(f"/stats is off by {self.miscounted}")
        return found


def run(plan: Plan, *, consumers: int = 3) -> Tally:
    """One run on servers of its own. Raises AssertionError when it does not settle."""
    begun = time.monotonic()
    with ExitStack() as clean_up:
        folder = Path(tempfile.mkdtemp(prefix="emailsvc-campaign-"))
        clean_up.callback(shutil.rmtree, folder, ignore_errors=True)
        environ = SHORT_LEASES | {"ON_UNCERTAIN": plan.on_uncertain}
        if plan.reports:
            environ |= {"REPORT_SECRETS": f"mine:{REPORT_SECRET}", "REPORT_WAIT_SECONDS": "2"}
        url = ""
        if plan.database == "postgresql":
            server, redis = PostgreSQL(durable=True), Redis()
            clean_up.callback(server.close)
            clean_up.callback(redis.close)
            url = server.url(server.create_database())
            environ |= {"DATABASE_URL": url, "REDIS_URL": redis.url}
        log = folder / "taken.jsonl"
        port = clean_up.enter_context(mail_server(log))
        stack = Stack(folder / "stack", **environ, SMTP_URL=f"smtp://127.0.0.1:{port}")
        clean_up.callback(stack.stop)
        url = url or f"sqlite:///{stack.folder}/instance/emailsvc.db"
        web, workers = stack.start(workers=consumers)
        with reporting(stack, log) if plan.reports else nullcontext():
            kills, accepted, tries = _storm(plan, stack, url, web, workers)
            stack.wait_settled(150)
        stats = stack.stats()
        letters = stack.dead_letters()
        uncertain = _column(url, UNCERTAIN)
        copies = _copies(log)
    held = {letter["email_id"] for letter in letters if letter["reason"] == "uncertain"}
    expected = {"received": len(accepted), "sent": len(accepted) - len(letters), "failed": len(letters)}
    off = sum(abs(stats[name] - value) for name, value in expected.items())
    off += max(0, stats["duplicates"] - (tries - len(accepted)))
    return Tally(
        kills=kills,
        emails=len(accepted),
        sent=sum(copies[email_id] > 0 for email_id in accepted),
        doubled=sum(count > 1 for count in copies.values()),
        lost=sum(copies[email_id] == 0 and email_id not in held for email_id in accepted),
        uncertain=len(uncertain | held),
        false_alarms=sum(copies[email_id] == 0 for email_id in held),
        other_dead_letters=len(letters) - len(held),
        miscounted=off,
        seconds=round(time.monotonic() - begun, 1),
        unsettled=sum(copies[email_id] > 0 for email_id in held),
        settled=stats["settled"],
    )


def _storm(plan: Plan, stack: Stack, url: str, web: Process, workers: list[Process]) -> tuple[int, set[str], int]:
    """Post and kill until both are done. Returns the number of kills, the ids answered 2xx, and the number of posts."""
    storm = Storm(plan, stack, url)
    senders = [threading.Thread(target=storm.send, args=(n,)) for n in range(SENDERS)]
    for sender in senders:
        sender.start()
    try:
        storm.kill(web, workers)
    finally:
        storm.done.set()
        for sender in senders:
            sender.join()
    assert not storm.errors, storm.errors[0]
    return storm.kills, storm.accepted, storm.tries


class Storm:
    """The senders keep step with the kills, so that there is mail in hand at every one of them."""

    def __init__(self, plan: Plan, stack: Stack, url: str) -> None:
        self.plan, self.stack, self.url = plan, stack, url
        self.kills, self.tries = 0, 0
        self.accepted: set[str] = set()
        self.errors: list[BaseException] = []
        self.done = threading.Event()
        self._guard = threading.Lock()
        self._next = 0

    def send(self, number: int) -> None:
        rng = random.Random(f"{self.plan.seed}-{number}")
        try:
            while (turn := self._turn()) is not None:
                for _ in range(1 + (rng.random() < REPEATS)):
                    self._post(payload(f"mail-{self.plan.seed}-{turn}"))
        except BaseException as exc:  # noqa: BLE001 - told by the main thread
            self.errors.append(exc)
        finally:
            self.stack.hang_up()

    def _turn(self) -> int | None:
        """The next e-mail's number, as soon as the kills have come far enough; None at the end."""
        with self._guard:
            turn = self._next
            self._next += 1
        if turn >= self.plan.emails:
            return None
        due = turn * self.plan.kills / self.plan.emails
        while self.kills + 1 < due and not self.done.wait(0.01):
            pass
        return turn

    def _post(self, payload: dict[str, str]) -> None:
        reply, tries = self.stack.post_until_answered(payload)
        assert reply.status in (200, 202), reply
        with self._guard:
            self.tries += tries
            self.accepted.add(payload["email_id"])

    def kill(self, web: Process, workers: list[Process]) -> None:
        rng = random.Random(self.plan.seed)
        while self.kills < self.plan.kills and not self.errors:
            if self.plan.term:
                self._restart(workers, rng)
            elif rng.random() < 0.25:
                time.sleep(rng.uniform(*MOMENT))
                web.kill9_child(rng)
            else:
                victim = self._oldest(workers)
                time.sleep(rng.uniform(*MOMENT))
                victim.kill9()
                workers.append(self.stack.spawn("worker"))
            self.kills += 1

    def _oldest(self, workers: list[Process]) -> Process:
        """The next victim, when it has signed on: one that is just starting has nothing to lose."""
        victim = workers.pop(0)

        def at_work() -> bool:
            return any(name.endswith(f":{victim.pid}") for name in _column(self.url, "SELECT id FROM workers"))

        wait_for(at_work, 60, lambda: f"a worker to sign on:\n{victim.output()[-3000:]}")
        return victim

    def _restart(self, workers: list[Process], rng: random.Random) -> None:
        """As a platform does it: the new one starts beside the old one, which is told twice to stop."""
        victim = self._oldest(workers)
        workers.append(self.stack.spawn("worker"))
        time.sleep(rng.uniform(*MOMENT))
        victim.term(times=2)
        code = victim.wait(25)
        assert code == 0, f"a worker ended with {code}:\n{victim.output()[-3000:]}"


@contextmanager
def mail_server(log: Path) -> Iterator[int]:
    """``tests.smtpd`` in a process of its own; yields its port."""
    command = [sys.executable, "-m", "tests.smtpd", "--log", str(log), "--delay", str(REPLY_SECONDS)]
    command += ["--id-header", "X-Email-Ref"]
    with start_process(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGTERM)


@contextmanager
def reporting(stack: Stack, log: Path) -> Iterator[None]:
    """What the mail server took is reported meanwhile, and at the end all of it has been."""
    done, errors = threading.Event(), []

    def report() -> None:
        reported = 0
        try:
            while True:
                is_last = done.is_set()
                taken = log.read_text().splitlines()[reported:][:MAX_REPORTED] if log.exists() else []
                if taken:
                    _tell(stack, [json.loads(line)["id"] for line in taken])
                    reported += len(taken)
                elif is_last:
                    return
                else:
                    time.sleep(0.05)
        except BaseException as exc:  # noqa: BLE001 - told by the main thread
            errors.append(exc)
        finally:
            stack.hang_up()

    thread = threading.Thread(target=report)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(60)
    assert not thread.is_alive(), "the reports found no end"
    assert not errors, errors[0]


def _tell(stack: Stack, references: list[str]) -> None:
    """As providers do: again until the answer is 2xx."""
    events = [{"event": "delivered", "reference": reference} for reference in references]
    secret = {"Authorization": "Basic " + base64.b64encode(f"any:{REPORT_SECRET}".encode()).decode()}
    deadline = time.monotonic() + 60
    while True:
        with suppress(OSError, http.client.HTTPException):
            reply = stack.request("POST", "/reports", events, secret)
            if reply.status == 200:
                assert reply.json["unmatched"] == 0, reply
                return
            assert reply.status >= 500, reply
        assert time.monotonic() < deadline, "no answer to a report in 60 s"
        time.sleep(0.05)


def _copies(log: Path) -> Counter[str]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return Counter(recipient.partition("@")[0] for line in lines for recipient in line["to"])


def _column(url: str, query: str) -> set[str]:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            return {row[0] for row in connection.execute(query)}
    with psycopg.connect(url) as postgresql:
        return {row[0] for row in postgresql.execute(query.encode())}


UNCERTAIN = "SELECT DISTINCT email_id FROM emails JOIN attempts a ON a.email = emails.id WHERE outcome = 'uncertain'"


def main() -> int:
    options = _options()
    out = Path(options.out) if options.out else None
    done = _read(out)
    failed = False
    for plan in _plans(options):
        if plan in done:
            continue
        tally = run(plan, consumers=options.consumers)
        done[plan] = tally
        if out:
            with out.open("a") as file:
                file.write(json.dumps({"plan": asdict(plan), "tally": asdict(tally)}) + "\n")
        print(f"seed {plan.seed}: {tally.kills} kills, {tally.emails} e-mails in {tally.seconds:g} s", file=sys.stderr)
    failed = False
    for plan, tally in done.items():
        for failure in tally.failures(plan):
            failed = True
            print(f"FAILED {plan}: {failure}", file=sys.stderr)
    print(table(done))
    return int(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--on-uncertain", choices=("hold", "retry"), default="hold")
    parser.add_argument("--kills", type=int, default=100, help="kill -9, or restarts with --term")
    parser.add_argument("--emails", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--consumers", type=int, default=3)
    parser.add_argument("--term", action="store_true", help="SIGTERM, twice, instead of kill -9")
    parser.add_argument("--reports", action="store_true", help="the mail server reports what it took")
    parser.add_argument("--out", help="file of finished runs, one JSON object a line; makes the campaign resumable")
    return parser.parse_args()


def _plans(options: argparse.Namespace) -> Iterator[Plan]:
    runs = -(-options.kills // RUN_KILLS)
    for number in range(runs):
        kills = options.kills // runs + (number < options.kills % runs)
        emails = options.emails // runs + (number < options.emails % runs)
        yield Plan(
            options.database, options.on_uncertain, options.term, kills, emails, options.seed + number, options.reports
        )


def _read(out: Path | None) -> dict[Plan, Tally]:
    if out is None or not out.exists():
        return {}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return {Plan(**line["plan"]): Tally(**line["tally"]) for line in lines}


COLUMNS = ("kills", "emails", "sent", "doubled", "lost", "uncertain", "settled", "false_alarms")


def _kind(plan: Plan) -> tuple[str, str, str]:
    fault = "SIGTERM ×2" if plan.term else "kill -9"
    return plan.database, plan.on_uncertain, f"{fault}, reported" if plan.reports else fault


def table(done: dict[Plan, Tally]) -> str:
    """All runs, added up by kind; Markdown, ready for the README of this folder."""
    heads = ["database", "on uncertain", "fault", "runs", "kills", "e-mails", "at the server"]
    heads += ["doubled", "lost", "uncertain", "settled by a report", "not taken", "minutes"]
    rows = [heads, ["---"] * len(heads)]
    kinds = sorted({_kind(plan) for plan in done})
    for kind in kinds:
        tallies = [tally for plan, tally in done.items() if _kind(plan) == kind]
        sums = [f"{sum(getattr(tally, name) for tally in tallies):,}" for name in COLUMNS]
        minutes = f"{sum(tally.seconds for tally in tallies) / 60:.0f}"
        rows.append([*kind, str(len(tallies)), *sums, minutes])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MissingServer as missing:
        sys.exit(str(missing))
