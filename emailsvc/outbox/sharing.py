"""Plain ``sent`` outcomes of one process: those of several threads that come together share a commit."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

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

    def record(self, row: Claimed, token: str, reply: str, seconds: float) -> Recorded | None:
        """Committed when it returns so. None: nothing is known, and ``outbox.record`` finds out, by the token: whether
        the row was locked, its erasure asked for, the database away, or only its reply lost.
        """
        try:
            running = self._commit(Taken(row.email_id, row.id, token, reply, seconds))
        except SQLAlchemyError:
            return None
        return None if running is None else Recorded(True, running, Status.SENT)

    def _write(self, taken: list[Taken]) -> list[bool | None]:
        with one_statement_on(self._engine) as connection:
            running = moves.send_together(connection, taken)
        return [running.get(one.row_id) for one in taken]
