"""What the log says of each attempt."""

from __future__ import annotations

import logging

from emailsvc.log import mask, without_addresses
from emailsvc.mail import Result
from emailsvc.outbox import Claimed, Recorded, log_settled
from emailsvc.vocabulary import Status

log = logging.getLogger("emailsvc.delivery")

_EVENTS = {Status.SENT: "sent", Status.FAILED: "dead_lettered", Status.CANCELLED: "cancelled"}


def log_recorded(row: Claimed, result: Result | None, recorded: Recorded, seconds: float) -> None:
    """``result`` None: the e-mail had expired, and there was no attempt."""
    event = _event(row, recorded)
    fields: dict[str, object] = {
        "email_id": row.email_id,
        "to": mask(row.recipient),
        "attempt": row.attempts + 1,
        "reason": _reason(result, recorded),
        "code": result and result.code,
        "seconds": round(seconds, 3),
        "retry_in": None if recorded.delay is None else round(recorded.delay, 1),
        "text": _text(result, recorded),
    }
    if not recorded.won:
        fields["outcome"] = result.outcome.value if result else "expired"
    level = logging.INFO if event in ("sent", "settled", "released") else logging.WARNING
    log.log(level, event, extra={"fields": fields})
    log_settled(email_id for email_id in recorded.settled if email_id != row.email_id)
    if result is not None:
        _log_outage(result, recorded)


def _event(row: Claimed, recorded: Recorded) -> str:
    if not recorded.won:
        return "stale_outcome"
    if row.email_id in recorded.settled:
        return "settled"
    if recorded.released is not None or recorded.state is None:
        return "released"
    return _EVENTS.get(recorded.state, "deferred")


def _text(result: Result | None, recorded: Recorded) -> str | None:
    if result is None:
        return None if recorded.settled else "expired"
    return without_addresses(result.reply)


def _reason(result: Result | None, recorded: Recorded) -> str | None:
    if recorded.state is Status.CANCELLED:
        return "erased"
    if recorded.delay is not None and result is not None:
        return result.outcome.value
    return recorded.reason or recorded.released


def _log_outage(result: Result, recorded: Recorded) -> None:
    if recorded.waiting is not None:
        why = {"outcome": result.outcome.value, "reason": without_addresses(result.reply), "waiting": recorded.waiting}
        log.warning("outage_began", extra={"fields": why})
    if recorded.outage_seconds is not None:
        ended = {"by": "probe", "outcome": result.outcome.value, "seconds": round(recorded.outage_seconds, 1)}
        log.warning("outage_ended", extra={"fields": ended})
