"""How an e-mail's id and a dead letter's number stand in a path."""

from __future__ import annotations

from werkzeug.routing import BaseConverter, IntegerConverter, Map

from emailsvc.intake.addresses import PRINTABLE


class EmailIdConverter(BaseConverter):
    """Any id there can be, slashes included, also at its beginning (which Werkzeug's own ``path`` refuses)."""

    part_isolating = False
    regex = f"{PRINTABLE}+"
    weight = 200  # after every other rule


class DeadLetterIdConverter(IntegerConverter):
    """Werkzeug's own ``int`` also takes the digits of other scripts."""

    regex = "[0-9]+"

    def __init__(self, map: Map) -> None:
        super().__init__(map, max=2**63 - 1)
