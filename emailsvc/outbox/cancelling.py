"""Taking back what waits."""

from __future__ import annotations

from sqlalchemy import Engine, select

from emailsvc.db.models import Email
from emailsvc.errors import Conflict, NotFound
from emailsvc.outbox import actions, moves
from emailsvc.vocabulary import ActionKind, Status

TOO_LATE: dict[str, tuple[str, str]] = {
    Status.SENT: ("already_sent", "The mail server took this e-mail already."),
    Status.SENDING: ("sending", "This e-mail is being sent right now."),
    Status.FAILED: ("failed", "This e-mail failed already; see its dead letter."),
}
_MAYBE_SENT = ("maybe_sent", "An earlier attempt may have reached the mail server, so it cannot be cancelled.")


def cancel(engine: Engine, email_id: str, *, who: str | None = None) -> None:
    """``pending → cancelled``, and what was absorbed for good; again is fine.

    Raises NotFound, or Conflict saying which state forbids it.
    """
    with engine.begin() as connection:
        if moves.cancel(connection, email_id):
            actions.note(connection, ActionKind.CANCELLED, who, asked={"email_id": email_id}, count=1)
            return
        found = connection.execute(
            select(Email.status, Email.maybe_sent, Email.duplicate_of)
            .where(Email.email_id == email_id)
            .with_for_update()
        ).first()
        if found is not None and found.duplicate_of is not None and moves.drop(connection, email_id):
            actions.note(connection, ActionKind.CANCELLED, who, asked={"email_id": email_id}, count=1)
    if found is None:
        raise NotFound(f"There is no e-mail with the id {email_id!r}.")
    if found.status == Status.PENDING and not found.maybe_sent:
        cancel(engine, email_id, who=who)  # it came back to pending between the two statements
    elif found.status != Status.CANCELLED:
        raise Conflict(*TOO_LATE.get(found.status, _MAYBE_SENT))
