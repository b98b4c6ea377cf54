"""Claims that may have been made."""

from __future__ import annotations

from sqlalchemy import Engine

from emailsvc.clock import monotonic
from emailsvc.outbox.claims import release
from emailsvc.settings.config import Config


class InDoubt:
    """Claims of this process whose commit was not heard of. One may have been made, or may yet appear: a commit that
    waits for a replica cannot be seen. Nobody works on its rows, so they go back as soon as they are seen.
    """

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    @property
    def tokens(self) -> set[str]:
        return set(self._until)

    def add(self, token: str, lease_seconds: float) -> None:
        self._until[token] = monotonic() + lease_seconds

    def settle(self, engine: Engine, config: Config) -> None:
        """Release what is there by now; after its lease a claim is the sweep's. Raises the database's errors."""
        for token, until in list(self._until.items()):
            release(engine, token, config)
            if monotonic() > until:
                self._until.pop(token, None)
