"""Simultaneous posts with few keys: of each key one e-mail may go out, whoever cancels or erases in between."""

from __future__ import annotations

import random
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine, select

from emailsvc import outbox
from emailsvc.db.models import Email
from emailsvc.errors import Conflict
from emailsvc.intake.payload import NewEmail
from emailsvc.outbox import Accepted
from emailsvc.settings.config import Config
from tests.factories import new_email

KEYS = 3


class Storm:
    """``seen`` counts the verdicts, and what was withdrawn."""

    def __init__(self, engine: Engine, config: Config, clients: int, seed: int = 0) -> None:
        self.engine, self.clients, self.seed = engine, clients, seed
        self.reception = outbox.Reception(engine, config, lambda: None)
        self.seen: Counter[str] = Counter()

    def run(self, rounds: int) -> None:
        with ThreadPoolExecutor(self.clients) as pool:
            for number in range(rounds):
                self._round(pool, number)

    def _round(self, pool: ThreadPoolExecutor, number: int) -> None:
        start = threading.Barrier(self.clients)
        firsts: list[str] = []  # of this round

        def client(one: int) -> list[Accepted]:
            lot = random.Random(f"{self.seed}.{number}.{one}")
            emails = [
                self._email(f"{number}.{lot.randrange(KEYS)}/{one}.{n}", lot) for n in range(lot.choice([1, 1, 5]))
            ]
            start.wait(60)
            answers = self.reception.accept_many(emails) if len(emails) > 1 else [self.reception.accept(emails[0])]
            firsts.extend(answer.email_id for answer in answers if answer.status == "accepted")
            if number % 2 and firsts and not lot.randrange(4):
                self._withdraw(lot.choice(firsts), erase=not lot.randrange(3))
            return answers

        answers = [answer for answers in pool.map(client, range(self.clients)) for answer in answers]
        self.seen.update(str(answer.status) for answer in answers)
        self._check(number, {answer.email_id: answer for answer in answers})

    def _email(self, email_id: str, lot: random.Random) -> NewEmail:
        key = _key(email_id)
        window = {"dedupe_key": key, "dedupe_window_seconds": 3600}
        return new_email(email_id, user=f"{key}@example.com", subject=lot.choice(["Hello", "Other"]), **window)

    def _withdraw(self, email_id: str, *, erase: bool) -> None:
        try:
            if erase:
                outbox.erase(self.engine, f"{_key(email_id)}@example.com")
            else:
                outbox.cancel(self.engine, email_id)
        except Conflict:
            return
        self.seen["erased" if erase else "cancelled"] += 1

    def _check(self, number: int, answers: dict[str, Accepted]) -> None:
        of_round = select(Email.email_id, Email.status, Email.duplicate_of).where(
            Email.email_id.startswith(f"{number}.")
        )
        with self.engine.connect().execution_options(read_only=True) as connection:
            found = {row.email_id: row for row in connection.execute(of_round)}
        assert found.keys() == answers.keys(), "what was answered is stored"
        by_key = defaultdict(list)
        for email_id, answer in answers.items():
            row = found[email_id]
            assert (answer.status == "absorbed") == (row.duplicate_of is not None), row
            if answer.first is not None:
                first = found[answer.first.email_id]
                assert (row.duplicate_of, first.duplicate_of) == (first.email_id, None), (row, first)
                assert _key(first.email_id) == _key(email_id)
            else:
                by_key[_key(email_id)].append(row.status)
        for key, statuses in by_key.items():
            assert statuses.count("pending") <= 1, f"{key}: {statuses}"
            assert number % 2 or statuses == ["pending"], f"{key}: {statuses}"


def _key(email_id: str) -> str:
    return email_id.partition("/")[0]
