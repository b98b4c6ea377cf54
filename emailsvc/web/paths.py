"""How an e-mail's id and a dead letter's number stand in a path."""

from __future__ import annotations

from werkzeug.routing import BaseConverter, ValidationError

from emailsvc.addresses import is_one_line

DEAD_LETTER = "int(max=9223372036854775807):dead_letter_id"


class EmailIdConverter(BaseConverter):
    """Anything, slashes included, also at its beginning (which Werkzeug's own ``path`` refuses)."""

    part_isolating = False
    regex = ".+"
    weight = 200  # after every other rule

    def to_python(self, value: str) -> str:
        if not is_one_line(value):  # no id is like that, and PostgreSQL takes no NUL
            raise ValidationError
        return value
