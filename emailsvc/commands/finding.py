"""`flask emails`: finding them, looking at one, and sending now what waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import click

from emailsvc import outbox, reports
from emailsvc.clock import isoformat
from emailsvc.commands.base import Command, as_, progress, show, tell
from emailsvc.context import service
from emailsvc.intake.decoding import convert
from emailsvc.intake.filters import EmailFilter
from emailsvc.vocabulary import Order, Priority, State

FILTER = (
    click.option("--user", help="the recipient, in capitals or not"),
    click.option("--state", type=click.Choice([state.value for state in State])),
    click.option("--since", help="received from then on, such as 2030-01-31T08:00:00Z; with the state sent, sent"),
    click.option("--until", help="and before"),
    click.option("--error", help="with the state failed: a part of the last error"),
    click.option("--priority", type=click.Choice([priority.value for priority in Priority]), help="of what is pending"),
    click.option("--duplicate-of", metavar="EMAIL_ID", help="absorbed by this one"),
    click.option("--first-unsent", is_flag=True, default=None, help="absorbed, and the first one was not sent"),
)


def filtered(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(FILTER):
        command = option(command)
    return command


def _chosen(given: Mapping[str, str | bool | None]) -> EmailFilter:
    return convert({name: value for name, value in given.items() if value is not None}, EmailFilter)


@click.group()
def emails() -> None:
    """What became of e-mails: list, show, send."""


@emails.command("list", cls=Command)
@filtered
@click.option(
    "--order", type=click.Choice([order.value for order in Order]), default=Order.NEWEST.value, show_default=True
)
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
@click.option("--cursor", help="next_cursor of the page before")
def list_(order: str, limit: int, cursor: str | None, **given: str | bool | None) -> None:
    """Find them, newest first or by when they are due."""
    show(reports.search(service().engine, _chosen(given), order=Order(order), limit=limit, cursor=cursor))


@emails.command("show", cls=Command)
@click.argument("email_id")
def show_(email_id: str) -> None:
    """One, with its timeline."""
    show(reports.email(service().engine, email_id))


@emails.command(cls=Command)
@click.argument("email_id", required=False)
@filtered
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True)
@click.option("--dry-run", is_flag=True, help="only say how many")
@as_
def send(email_id: str | None, limit: int, dry_run: bool, who: str, **given: str | bool | None) -> None:
    """Make one due at once, or those pending that match; `--state pending` is all of them.

    With `--first-unsent`: what was absorbed as a duplicate of an e-mail that was not sent.
    """
    if email_id is None:
        _send_many(_chosen(given), limit, dry_run, who)
    elif dry_run or any(given.values()):
        raise click.UsageError("Give either an id or a filter.")
    else:
        due = isoformat(outbox.send_now(service().engine, email_id, who=who))
        answer = {"email_id": email_id, "state": "pending", "next_attempt_at": due}
        tell(answer, f"{email_id}: due since {due}")
    service().wake()


def _send_many(wanted: EmailFilter, limit: int, dry_run: bool, who: str) -> None:
    done = outbox.send_many_now(service().engine, wanted, limit=limit, dry_run=dry_run, who=who, progress=progress)
    left = {
        "due already": done.already_due,
        "not before their send_at": done.scheduled,
        "left out: an attempt was uncertain": done.uncertain_left_out,
    }
    made_due = f"{done.made_due} of {done.matching} {'would be ' if dry_run else ''}made due"
    tell(done, made_due, *(f"{count} {why}" for why, count in left.items() if count))
