"""Dead letters: looking at them, and deciding what becomes of them."""

from __future__ import annotations

import logging

from emailsvc import outbox, reports
from emailsvc.context import service
from emailsvc.intake.payload import in_utc
from emailsvc.reports.answers import DeadLetterPage
from emailsvc.vocabulary import Resolution
from emailsvc.web import auth
from emailsvc.web.answers import DeadLetterQuery, ReplayAnswer, ReplayRequest, ResolvedAnswer
from emailsvc.web.contract import Routes

log = logging.getLogger("emailsvc.web")

blueprint = Routes("dead_letters", __name__)

ONE = "/stats/dead-letters/{dead_letter_id}"
RESOLVING = ("not_found", "already_resolved")


@blueprint.declare(
    "GET", "/stats/dead-letters", "operator", "E-mails given up, newest first",
    codes=("invalid_field", "unknown_field"),
)  # fmt: skip
def listing(query: DeadLetterQuery) -> DeadLetterPage:
    return reports.dead_letters(
        service().engine,
        reason=query.reason,
        since=in_utc(query.since),
        until=in_utc(query.until),
        resolved=query.resolved == 1,
        limit=query.limit,
        cursor=query.cursor,
    )


@blueprint.declare("POST", "/stats/dead-letters/replay", "operator", "Send many again, oldest first")
def replay_many(body: ReplayRequest) -> ReplayAnswer:
    replayed = outbox.replay_many(
        service().engine,
        reason=body.reason,
        since=in_utc(body.since),
        until=in_utc(body.until),
        limit=int(body.limit),
        dry_run=body.dry_run,
        who=auth.operator_name(),
    )
    if replayed and not body.dry_run:
        service().wake()
        log.info("replayed", extra={"fields": {"dead_letters": replayed}})
    return ReplayAnswer(replayed)


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
