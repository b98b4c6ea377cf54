"""Where clients post e-mails."""

from __future__ import annotations

import logging
from typing import Literal, TypedDict

from flask import Response

from emailsvc import clock, outbox
from emailsvc.context import service
from emailsvc.errors import InvalidPayload, ServiceError
from emailsvc.intake.batches import parse_batch
from emailsvc.intake.payload import BatchPayload, EmailPayload, Rules, parse_email
from emailsvc.settings.config import Config
from emailsvc.vocabulary import State
from emailsvc.web import refused
from emailsvc.web.answers import AcceptedAnswer, BatchAnswer, BatchResult, DuplicateAnswer
from emailsvc.web.contract import Routes
from emailsvc.web.reading import answer, json_body

log = logging.getLogger("emailsvc.web")

blueprint = Routes("webhook", __name__)


class _Absorbed(TypedDict, total=False):
    duplicate_of: str
    first_state: State | None
    same_content: bool | None


MISMATCH = "This email_id was accepted before with other content; the first one stands and this one is not sent."


@blueprint.declare(
    "POST", "/webhook/email", "client", "Send one e-mail, once",
    answers={202: AcceptedAnswer, 200: DuplicateAnswer}, codes=("payload_mismatch",), body=EmailPayload,
)  # fmt: skip
def email() -> Response:
    config = service().config
    accepted = service().reception.accept(parse_email(json_body(), _rules(config)))
    _log(accepted)
    if accepted.status == "accepted":
        return answer(AcceptedAnswer("accepted", accepted.email_id, State.PENDING), 202)
    mismatch = accepted.status == "mismatch"
    if mismatch and config.on_mismatch == "reject":
        raise ServiceError(422, "payload_mismatch", MISMATCH, "email_id")
    return answer(_duplicate(accepted, mismatch), 200, {"Idempotent-Replayed": "true"})


@blueprint.declare(
    "POST", "/webhook/email/batch", "client", "Send up to 1,000 e-mails, each once, with one result for each",
    body=BatchPayload,
)  # fmt: skip
def batch() -> BatchAnswer:
    config = service().config
    items = parse_batch(json_body(), _rules(config))
    emails = [item for item in items if not isinstance(item, InvalidPayload)]
    stored = iter(service().reception.accept_many(emails))
    results = [
        _invalid(index, item) if isinstance(item, InvalidPayload) else _result(index, next(stored), config)
        for index, item in enumerate(items)
    ]
    return BatchAnswer(results)


def _rules(config: Config) -> Rules:
    return Rules(config.from_domains, config.idempotency_header, config.dedupe_window_seconds)


def _duplicate(accepted: outbox.Accepted, mismatch: bool) -> DuplicateAnswer:
    first_received_at = clock.isoformat(accepted.first_received_at)
    given = (accepted.email_id, accepted.state, first_received_at, accepted.duplicates, mismatch)
    return DuplicateAnswer("duplicate", *given, **_absorbed(accepted))


def _absorbed(accepted: outbox.Accepted) -> _Absorbed:
    first = accepted.first
    if first is None or accepted.state is not State.ABSORBED:
        return {}
    return {"duplicate_of": first.email_id, "first_state": first.state, "same_content": accepted.same_content}


def _invalid(index: int, error: InvalidPayload) -> BatchResult:
    refused.note(error.status, error.code, error.field, error.email_id)
    return BatchResult(index, "invalid", code=error.code, field=error.field, detail=error.detail)


def _result(index: int, accepted: outbox.Accepted, config: Config) -> BatchResult:
    _log(accepted)
    given = (accepted.email_id, accepted.state)
    if accepted.status == "mismatch" and config.on_mismatch == "reject":
        return BatchResult(index, "mismatch", *given, "payload_mismatch", "email_id", MISMATCH)
    status: Literal["accepted", "duplicate"] = "accepted" if accepted.status == "accepted" else "duplicate"
    return BatchResult(index, status, *given, **_absorbed(accepted))


def _log(accepted: outbox.Accepted) -> None:
    fields: dict[str, object] = {"email_id": accepted.email_id, "state": accepted.state}
    if accepted.status != "accepted":
        fields["duplicates"] = accepted.duplicates
    if accepted.first is not None:
        fields |= {"duplicate_of": accepted.first.email_id, "same_content": accepted.same_content}
    log.info(accepted.status, extra={"fields": fields})
