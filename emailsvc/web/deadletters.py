"""Dead letters: looking at them, and deciding what becomes of them."""

from __future__ import annotations

import logging
from dataclasses import asdict

from flask import Blueprint, Response

from emailsvc import outbox, reports
from emailsvc.intake.payload import in_utc
from emailsvc.service import service
from emailsvc.web import auth
from emailsvc.web.answers import DeadLetterQuery, ReplayAnswer, ReplayRequest
from emailsvc.web.paths import DEAD_LETTER
from emailsvc.web.reading import answer, json_as, query_as

log = logging.getLogger("emailsvc.web")

blueprint = Blueprint("dead_letters", __name__, url_prefix="/stats/dead-letters")
blueprint.before_request(auth.require_operator)


@blueprint.get("")
def listing() -> Response:
    query = query_as(DeadLetterQuery)
    page, next_cursor = reports.dead_letters(
        service().engine,
        reason=query.reason,
        since=in_utc(query.since),
        until=in_utc(query.until),
        resolved=query.resolved == 1,
        limit=query.limit,
        cursor=query.cursor,
    )
    return answer({"dead_letters": page, "next_cursor": next_cursor})


@blueprint.post("/replay")
def replay_many() -> Response:
    wanted = json_as(ReplayRequest)
    replayed = outbox.replay_many(
        service().engine,
        reason=wanted.reason,
        since=in_utc(wanted.since),
        until=in_utc(wanted.until),
        limit=int(wanted.limit),
        dry_run=wanted.dry_run,
    )
    if replayed and not wanted.dry_run:
        service().wake()
        log.info("replayed", extra={"fields": {"dead_letters": replayed}})
    return answer(ReplayAnswer(replayed))


@blueprint.post(f"/<{DEAD_LETTER}>/replay")
def replay(dead_letter_id: int) -> Response:
    resolved = outbox.replay(service().engine, dead_letter_id)
    service().wake()
    return _answer(resolved)


@blueprint.post(f"/<{DEAD_LETTER}>/delivered")
def delivered(dead_letter_id: int) -> Response:
    return _answer(outbox.delivered(service().engine, dead_letter_id))


@blueprint.delete(f"/<{DEAD_LETTER}>")
def discard(dead_letter_id: int) -> Response:
    return _answer(outbox.discard(service().engine, dead_letter_id))


def _answer(resolved: outbox.Resolved) -> Response:
    fields = {"email_id": resolved.email_id, "dead_letter": resolved.id}
    log.info(resolved.resolution, extra={"fields": fields})
    return answer(asdict(resolved))
