"""Plain ``sent`` outcomes of one process: those of several threads that come together share a commit."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from emailsvc.clock import monotonic
from emailsvc.db.groupcommit import GroupCommit
from emailsvc.outbox import moves
from emailsvc.outbox.claims import Claimed
from emailsvc.outbox.moves import Taken
from emailsvc.outbox.recording import Recorded
from emailsvc.outbox.transaction import one_statement_on
from emailsvc.vocabulary import Status


class SentTogether:
    """``record`` for e-mails that were no probe, and that the server took."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commit = GroupCommit(self._write, lambda _taken: None)

    def record(self, row: Claimed, token: str, reply: str, seconds: float) -> tuple[Recorded, float] | None:
        """Committed when it returns so, with a moment (monotonic) shortly before it looked at the switch.

        None: nothing is known, and ``outbox.record`` finds out, by the token: whether the row was locked, its erasure
        asked for, the database away, or only its reply lost.
        """
        try:
            return self._commit(Taken(row.email_id, row.id, token, reply, seconds))
        except SQLAlchemyError:
            return None

    def _write(self, taken: list[Taken]) -> list[tuple[Recorded, float] | None]:
        began = monotonic()
        with one_statement_on(self._engine) as connection:
            running = moves.send_together(connection, taken)
        sent = {row_id: (Recorded(True, go_on, Status.SENT), began) for row_id, go_on in running.items()}
        return [sent.get(one.row_id) for one in taken]
