"""`flask dead-letters`: what was given up, one by one or by what it has in common."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import datetime
from functools import reduce, wraps
from typing import Any

import click
from msgspec.structs import asdict

from emailsvc import outbox, reports
from emailsvc.commands.base import Command, as_, progress, show, tell
from emailsvc.context import service
from emailsvc.db.choosing import EVERY, LetterFilter
from emailsvc.vocabulary import ActionState, Reason, Resolution

ID = click.IntRange(1, 2**63 - 1)
FOLLOW_SECONDS = 1.0


class Moment(click.ParamType[datetime]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            self.fail(f"{value!r} is not a time with an offset, such as 2030-01-31T08:00:00Z", param, ctx)
        return moment


FILTERS = (
    click.option("--reason", type=click.Choice([reason.value for reason in Reason])),
    click.option("--code", type=click.IntRange(200, 599), help="of the mail server's reply"),
    click.option("--domain", help="the recipient's"),
    click.option("--error", help="what the error contains, in capitals or not"),
    click.option("--since", type=Moment()),
    click.option("--until", type=Moment()),
)


def filtered(command: Callable[..., None]) -> Callable[..., None]:
    """With the options of a filter, and with ``chosen``, which is made of them."""

    @wraps(command)
    def run(
        *,
        reason: str | None,
        code: int | None,
        domain: str | None,
        error: str | None,
        since: datetime | None,
        until: datetime | None,
        **rest: object,
    ) -> None:
        reasons = None if reason is None else Reason(reason)
        command(chosen=LetterFilter(reasons, code, domain, error, since, until), **rest)

    return reduce(lambda made, option: option(made), reversed(FILTERS), run)


def bulk(command: Callable[..., None]) -> Callable[..., None]:
    """With the options of what is done to many."""
    options = (
        click.argument("number", type=ID, required=False),
        click.option("--all", "every", is_flag=True, help="every unresolved one, except uncertain ones"),
        click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="oldest first"),
        click.option("--rate", type=click.FloatRange(0.1, 1000), help="so many a second, by the workers"),
        click.option("--dry-run", is_flag=True, help="only say how many"),
    )
    return filtered(reduce(lambda made, option: option(made), reversed(options), as_(command)))


@click.group("dead-letters")
def dead_letters() -> None:
    """What was given up: list, groups, show, replay, delivered, discard."""


@dead_letters.command("list", cls=Command)
@click.option("--resolved", is_flag=True, help="those that were resolved already")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
@click.option("--cursor", help="next_cursor of the page before")
@filtered
def list_(chosen: LetterFilter, resolved: bool, limit: int, cursor: str | None) -> None:
    """Newest first."""
    show(reports.dead_letters(service().engine, chosen, resolved=resolved, limit=limit, cursor=cursor))


@dead_letters.command(cls=Command)
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@filtered
def groups(chosen: LetterFilter, limit: int) -> None:
    """By reason, the reply's codes and its words; the largest first."""
    show(reports.letter_groups(service().engine, chosen, limit=limit))


@dead_letters.command("show", cls=Command)
@click.argument("number", type=ID)
def show_(number: int) -> None:
    """One dead letter with its e-mail's timeline."""
    letter = reports.dead_letter(service().engine, number)
    show({**asdict(letter), "email": reports.email(service().engine, letter.email_id)})


@dead_letters.command(cls=Command)
@bulk
def replay(number: int | None, **given: Any) -> None:
    """Send one again, or with --all or a filter those that match."""
    _one_or_many(outbox.replay, Resolution.REPLAYED, number, **given)
    service().wake()


@dead_letters.command(cls=Command)
@bulk
def discard(number: int | None, **given: Any) -> None:
    """Never send it, or with --all or a filter those that match."""
    _one_or_many(outbox.discard, Resolution.DISCARDED, number, **given)


@dead_letters.command(cls=Command)
@click.argument("numbers", metavar="NUMBER...", type=ID, nargs=-1, required=True)
@as_
def delivered(numbers: tuple[int, ...], who: str) -> None:
    """Mark as delivered: the e-mail becomes `sent`."""
    for number in numbers:
        _resolve(outbox.delivered, number, who)


def _one_or_many(
    act: Callable[..., outbox.Resolved],
    resolution: Resolution,
    number: int | None,
    *,
    chosen: LetterFilter,
    every: bool,
    limit: int,
    rate: float | None,
    dry_run: bool,
    who: str,
) -> None:
    named = chosen != EVERY
    if number is not None and (every or named or dry_run or rate):
        raise click.UsageError("--all, --rate, --dry-run and filters are for many; with a number, look with `show`.")
    if number is None and not every and not named:
        raise click.UsageError("Give a dead letter's number, --all, or a filter such as --reason.")
    engine = service().engine
    if number is not None:
        _resolve(act, number, who)
    elif dry_run:
        _preview(outbox.preview(engine, resolution, chosen, limit), resolution)
    elif rate is not None:
        _follow(outbox.start(engine, resolution, chosen, limit=limit, rate=rate, who=who))
    else:
        count = outbox.resolve_many(engine, resolution, chosen, limit=limit, who=who, progress=progress)
        tell({resolution.value: count}, f"{count} {resolution}")


def _resolve(act: Callable[..., outbox.Resolved], number: int, who: str) -> None:
    resolved = act(service().engine, number, who=who)
    tell(resolved, f"dead letter {resolved.id} of {resolved.email_id}: {resolved.resolution}")


def _preview(would: outbox.Preview, resolution: Resolution) -> None:
    tell(would, f"{would.would_move} would be {resolution}")
    left = {"uncertain, left out": would.uncertain_left_out, "whose content is gone": would.content_gone}
    for what, count in {"that match": would.matching, **left}.items():
        click.echo(f"{count} {what}", err=True)


def _follow(number: int) -> None:
    """On a terminal until it is over; Ctrl-C ends the looking, and not the action."""
    action = reports.action(service().engine, number)
    tell(action, f"action {number}: {action.total} dead letters, {action.rate:g} a second")
    click.echo(f"`flask actions show {number}` tells how far it is, `flask actions stop {number}` ends it", err=True)
    while sys.stderr.isatty() and action.state is ActionState.RUNNING:
        time.sleep(FOLLOW_SECONDS)
        action = reports.action(service().engine, number)
        progress(action.done or 0, action.total)
