"""How an e-mail's id and a dead letter's number stand in a path."""

from __future__ import annotations

from werkzeug.routing import BaseConverter, IntegerConverter

from emailsvc.intake.addresses import PRINTABLE

DEAD_LETTER = "dead_letter_id(max=9223372036854775807):dead_letter_id"


class EmailIdConverter(BaseConverter):
    """Any id there can be, slashes included, also at its beginning (which Werkzeug's own ``path`` refuses)."""

    part_isolating = False
    regex = f"{PRINTABLE}+"
    weight = 200  # after every other rule


class DeadLetterIdConverter(IntegerConverter):
    """Werkzeug's own ``int`` also takes the digits of other scripts."""

    regex = "[0-9]+"
