"""Dead letters: looking at them, and deciding what becomes of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from flask import Response

from emailsvc import outbox, reports
from emailsvc.context import service
from emailsvc.db.choosing import EVERY, LetterFilter
from emailsvc.errors import InvalidPayload
from emailsvc.intake import addresses
from emailsvc.intake.payload import in_utc
from emailsvc.reports.answers import Action, DeadLetterPage, LetterGroups
from emailsvc.vocabulary import Resolution
from emailsvc.web import auth
from emailsvc.web.answers import (
    BulkRequest,
    DeadLetterQuery,
    DeliveredAnswer,
    DeliveredRequest,
    DiscardAnswer,
    GroupQuery,
    LetterQuery,
    ReplayAnswer,
    ResolvedAnswer,
)
from emailsvc.web.contract import Routes
from emailsvc.web.reading import answer

log = logging.getLogger("emailsvc.web")

blueprint = Routes("dead_letters", __name__)

ONE = "/stats/dead-letters/{dead_letter_id}"
RESOLVING = ("not_found", "already_resolved")


@blueprint.declare(
    "GET", "/stats/dead-letters", "operator", "E-mails given up, newest first",
    codes=("invalid_field", "unknown_field"), template="letters.html",
)  # fmt: skip
def listing(query: DeadLetterQuery) -> DeadLetterPage:
    return reports.dead_letters(
        service().engine, _filter(query), resolved=query.resolved == 1, limit=query.limit, cursor=query.cursor
    )


@blueprint.declare(
    "GET", "/stats/dead-letters/groups", "operator", "Unresolved ones by what they have in common",
    codes=("invalid_field", "unknown_field"),
)  # fmt: skip
def groups(query: GroupQuery) -> LetterGroups:
    return reports.letter_groups(service().engine, _filter(query), limit=query.limit)


@blueprint.declare(
    "POST", "/stats/dead-letters/replay", "operator", "Send many again, oldest first",
    answers={200: ReplayAnswer, 202: Action},
)  # fmt: skip
def replay_many(body: BulkRequest) -> Response:
    chosen = _filter(body, body.ids)
    if body.dry_run:
        would = outbox.preview(service().engine, Resolution.REPLAYED, chosen, int(body.limit))
        return answer(
            ReplayAnswer(
                replayed=would.would_move,
                would_replay=would.would_move,
                matching=would.matching,
                uncertain_left_out=would.uncertain_left_out,
                content_gone=would.content_gone,
            )
        )
    if body.rate is not None:
        return _started(Resolution.REPLAYED, body, chosen)
    # Without a filter, too: the first release's scripts say so for "all".
    return answer(ReplayAnswer(replayed=_resolve_many(Resolution.REPLAYED, chosen, int(body.limit))))


@blueprint.declare(
    "POST", "/stats/dead-letters/discard", "operator", "Discard many, oldest first",
    answers={200: DiscardAnswer, 202: Action},
)  # fmt: skip
def discard_many(body: BulkRequest) -> Response:
    chosen = _filter(body, body.ids)
    if body.dry_run:
        would = outbox.preview(service().engine, Resolution.DISCARDED, chosen, int(body.limit))
        return answer(
            DiscardAnswer(
                would_discard=would.would_move,
                matching=would.matching,
                uncertain_left_out=would.uncertain_left_out,
            )
        )
    if body.rate is not None:
        return _started(Resolution.DISCARDED, body, chosen)
    _insist_on_a_name(chosen)
    return answer(DiscardAnswer(discarded=_resolve_many(Resolution.DISCARDED, chosen, int(body.limit))))


@blueprint.declare("POST", "/stats/dead-letters/delivered", "operator", "Mark those named as delivered")
def delivered_many(body: DeliveredRequest) -> DeliveredAnswer:
    chosen = LetterFilter(ids=tuple(body.ids))
    return DeliveredAnswer(_resolve_many(Resolution.DELIVERED, chosen, len(body.ids)))


def _filter(given: LetterQuery, ids: Sequence[int] | None = None) -> LetterFilter:
    if given.error is not None:
        addresses.one_line(given.error, "error")
    if given.domain is not None:
        addresses.one_line(given.domain, "domain")
    since, until = in_utc(given.since), in_utc(given.until)
    code = None if given.code is None else int(given.code)
    return LetterFilter(given.reason, code, given.domain, given.error, since, until, tuple(ids or ()))


def _insist_on_a_name(chosen: LetterFilter) -> None:
    if chosen == EVERY:
        named = "Name at least one of reason, code, domain, error, since, until and ids; limit alone names nothing."
        raise InvalidPayload("missing_field", named, "reason")


def _resolve_many(resolution: Resolution, chosen: LetterFilter, limit: int) -> int:
    count = outbox.resolve_many(service().engine, resolution, chosen, limit=limit, who=auth.operator_name())
    if count:
        service().wake()
        log.info(resolution, extra={"fields": {"dead_letters": count}})
    return count


def _started(resolution: Resolution, body: BulkRequest, chosen: LetterFilter) -> Response:
    _insist_on_a_name(chosen)
    engine, who = service().engine, auth.operator_name()
    number = outbox.start(engine, resolution, chosen, limit=int(body.limit), rate=body.rate, who=who)
    begun = reports.action(engine, number)
    log.info(resolution, extra={"fields": {"action": number, "dead_letters": begun.total, "rate": body.rate}})
    return answer(begun, 202)


@blueprint.declare("POST", f"{ONE}/replay", "operator", "Send it again", codes=(*RESOLVING, "content_gone"))
def replay(dead_letter_id: int) -> ResolvedAnswer:
    resolved = outbox.replay(service().engine, dead_letter_id, who=auth.operator_name())
    service().wake()
    return _answer(resolved)


@blueprint.declare("POST", f"{ONE}/delivered", "operator", "Mark as delivered: it becomes sent", codes=RESOLVING)
def delivered(dead_letter_id: int) -> ResolvedAnswer:
    return _answer(outbox.delivered(service().engine, dead_letter_id, who=auth.operator_name()))


@blueprint.declare("DELETE", ONE, "operator", "Discard it: it is never sent", codes=RESOLVING)
def discard(dead_letter_id: int) -> ResolvedAnswer:
    return _answer(outbox.discard(service().engine, dead_letter_id, who=auth.operator_name()))


def _answer(resolved: outbox.Resolved) -> ResolvedAnswer:
    fields = {"email_id": resolved.email_id, "dead_letter": resolved.id}
    log.info(resolved.resolution, extra={"fields": fields})
    return ResolvedAnswer(resolved.id, resolved.email_id, Resolution(resolved.resolution))
