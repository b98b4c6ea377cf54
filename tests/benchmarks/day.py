"""An operator's day: each task by its route and by its command, with the seconds that either takes.

What a command shows in a pipe must be what the route answers. The seconds of a command are those of its process.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlencode

from psycopg import connect

from tests.benchmarks.stand import deployed
from tests.factories import payload
from tests.servers import wait_for
from tests.smtpd import Smtpd
from tests.stack import Stack, copies, smtp_url

LETTERS, CHOSEN, RATE = 5_000, 300, 10

FILL = (
    """INSERT INTO emails (email_id, fingerprint, recipient, subject, body, size, message_id, status, priority,
         on_uncertain, attempts, received_at, last_error)
       SELECT %(error)s || '-' || n, 'f', %(error)s || '-' || n || '@domain' || mod(n, 3) || '.example', 'Your order',
         'It is on its way.', 20, '<' || %(error)s || n || '@example.com>', 'failed', 1, 'hold', 1, now(), %(reply)s
       FROM generate_series(1, %(count)s) n""",
    """INSERT INTO dead_letters (email, reason, error, attempts, created_at)
       SELECT id, 'rejected', last_error, 1, now() FROM emails WHERE last_error = %(reply)s""",
)
REPLIES = {"full": "552 5.2.2 mailbox full", "quota": "552 5.2.2 over quota", "gone": "550 5.1.1 no such user"}


class Look(NamedTuple):
    """A task that only looks: what it asks, and what the answer must tell."""

    task: str
    ask: Callable[[Stack], Any]
    command: str
    tells: Callable[[Any], object]


def of(path: str, **query: str) -> Callable[[Stack], Any]:
    return lambda stack: stack.get(f"{path}?{urlencode(query)}" if query else path).json


def search(**wanted: str) -> Callable[[Stack], Any]:
    return lambda stack: stack.post(wanted, "/emails/search").json


WEEK_AGO = (datetime.now(UTC) - timedelta(days=7)).isoformat(timespec="seconds")
LOOKS = (
    Look(
        "why it did not arrive: failed", of("/emails/refused-1"), "emails show refused-1",
        lambda told: told["last_error"].endswith("550 5.1.1 no such user"),
    ),
    Look(
        "why it did not arrive: sent", of("/emails/taken-1"), "emails show taken-1",
        lambda told: told["timeline"][-1]["text"].startswith("250"),
    ),
    Look(
        "all e-mail to one person", search(user="taken@example.com"), "emails list --user taken@example.com",
        lambda told: [one["email_id"] for one in told["emails"]] == ["taken-2", "taken-1"],
    ),
    Look(
        "what is stuck", search(order="due"), "emails list --order due",
        lambda told: {one["email_id"] for one in told["emails"] if one["last_error"]} == {"later-1", "tardy-1"},
    ),
    Look(
        "what is pending after a restore", search(state="pending"), "emails list --state pending",
        lambda told: told["emails"][0]["email_id"] == "waiting-1",
    ),
    Look(
        "a duplicate's history", of("/emails/taken-1"), "emails show taken-1",
        lambda told: (told["duplicates"], told["mismatches"]) == (2, 1),
    ),
    Look(
        "who paused last week", of("/actions", kind="paused", since=WEEK_AGO),
        f"actions --kind paused --since {WEEK_AGO}", lambda told: [one["who"] for one in told["actions"]] == ["ada"],
    ),
)  # fmt: skip


REPLAY = "/stats/dead-letters/replay"


class Replayer(NamedTuple):
    """How dead letters with an error are counted, replayed at a rate, watched and left in the middle."""

    by: str
    count: Callable[[Stack, str], int]
    begin: Callable[[Stack, str], int]
    done: Callable[[Stack, int], int]
    stop: Callable[[Stack, int], int]


REPLAYERS = (
    Replayer(
        "route",
        lambda stack, error: stack.post({"error": error, "dry_run": True}, REPLAY).json["would_replay"],
        lambda stack, error: stack.post({"error": error, "rate": RATE}, REPLAY).json["id"],
        lambda stack, number: stack.get(f"/actions/{number}").json["done"],
        lambda stack, number: stack.post(None, f"/actions/{number}/stop").json["left"],
    ),
    Replayer(
        "command",
        lambda stack, error: command(stack, f"dead-letters replay --error '{error}' --dry-run --json")["would_move"],
        lambda stack, error: command(stack, f"dead-letters replay --error '{error}' --rate {RATE} --json")["id"],
        lambda stack, number: command(stack, f"actions show {number}")["done"],
        lambda stack, number: command(stack, f"actions stop {number} --json")["left"],
    ),
)


def day() -> dict[str, object]:
    away = ["later", "tardy"]

    def refuse(recipient: str) -> str | None:
        if recipient.startswith("refused"):
            return "550 5.1.1 no such user"
        return "451 4.7.1 try later" if recipient.startswith(tuple(away)) else None

    with (
        Smtpd(keep_commands=False, refuse=refuse) as server,
        deployed(smtp_url(server), workers=1, RETRY_DELAY_SECONDS="3600") as stack,
    ):
        _fill(stack)
        table: dict[str, object] = {look.task: _look(stack, look) for look in LOOKS}
        command(stack, "resume")
        away.clear()
        table["deferred ones sent now"] = _hurry(stack, server)
        for one, error in zip(REPLAYERS, ("full", "quota"), strict=True):
            task = f"{CHOSEN} of {LETTERS:,} by error text, {RATE} a second, by {one.by}"
            table[task] = _replay(stack, server, one, error)
        return table


def _fill(stack: Stack) -> None:
    with connect(stack.environ["DATABASE_URL"], autocommit=True) as connection:
        for error, reply in REPLIES.items():
            count = CHOSEN if error != "gone" else LETTERS - 2 * CHOSEN
            for statement in FILL:
                connection.execute(statement, {"error": error, "reply": reply, "count": count})
    for name in ("refused-1", "taken-1", "taken-2", "later-1", "tardy-1"):
        _post(stack, name, 202)
    for _ in range(2):
        _post(stack, "taken-1", 200)
    _post(stack, "taken-1", 422, subject="Another")
    wait_for(lambda: stack.stats()["failed_attempts"] == 3 and stack.stats()["sent"] == 2, 30, "the first attempts")
    stack.run("flask pause --as ada")
    _post(stack, "waiting-1", 202)


def _post(stack: Stack, email_id: str, status: int, **fields: str) -> None:
    user = f"{email_id.partition('-')[0]}@example.com"
    reply = stack.post(payload(email_id, user=user, **fields))
    assert reply.status == status, reply


def _timed(do: Callable[[], Any]) -> tuple[Any, float]:
    began = time.monotonic()
    return do(), time.monotonic() - began


def command(stack: Stack, words: str) -> Any:
    return json.loads(stack.run(f"flask {words}").stdout)


def _look(stack: Stack, look: Look) -> str:
    answered, by_route = _timed(lambda: look.ask(stack))
    shown, by_command = _timed(lambda: command(stack, look.command))
    assert answered == shown, (answered, shown)
    assert look.tells(shown), shown
    return f"{by_route:.3f} s by route, {by_command:.1f} s by command"


def _hurry(stack: Stack, server: Smtpd) -> str:
    """Until the mail server has it."""

    def sent(name: str, ask: Callable[[], Any]) -> float:
        def do() -> None:
            assert ask()["made_due"] == 1
            wait_for(lambda: copies(server)[name], 20, f"{name} to be sent", pause=0.01)

        return _timed(do)[1]

    route = sent("later", lambda: stack.post({"user": "later@example.com"}, "/emails/send").json)
    by_command = sent("tardy", lambda: command(stack, "emails send --user tardy@example.com --json"))
    return f"{route:.3f} s by route, {by_command:.1f} s by command, until the mail server had it"


def _replay(stack: Stack, server: Smtpd, one: Replayer, error: str) -> str:
    words = REPLIES[error].partition(" ")[2].partition(" ")[2]
    found, counted = _timed(lambda: one.count(stack, words))
    assert found == CHOSEN, found
    number, begun = _timed(lambda: one.begin(stack, words))
    looks: list[int] = []

    def look() -> bool:
        looks.append(one.done(stack, number))
        return looks[-1] >= CHOSEN / 2

    half = _timed(lambda: wait_for(look, 60, "half of it to be moved", pause=0.2))[1]
    left, stopped = _timed(lambda: one.stop(stack, number))
    taken = lambda: Counter({name: n for name, n in copies(server).items() if name.startswith(f"{error}-")})  # noqa: E731
    wait_for(lambda: taken().total() == CHOSEN - left, 20, "what was moved to be sent")
    assert 0 < left == one.count(stack, words)
    assert set(taken().values()) == {1}
    assert looks == sorted(looks)
    return (
        f"counted in {counted:.2f} s, begun in {begun:.2f} s, half-way after {half:.1f} s in {len(looks)} looks, "
        f"stopped in {stopped:.2f} s: {CHOSEN - left} sent once, {left} left"
    )
