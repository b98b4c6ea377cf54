"""Our reference where it comes back: among the headers of the e-mail that a report is about, or under a key of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable

from emailsvc.feedback.events import heard, one_line
from emailsvc.feedback.reference import HEADERS
from emailsvc.vocabulary import Report

KEY = "ref"
"""Among the metadata, arguments or variables that a provider hands back."""

_OURS = frozenset(map(str.lower, HEADERS))

UNMATCHED = heard(Report.BOUNCED)
"""A report that cannot be read: of no e-mail, and counted so."""

_reference = re.compile(r"(?<![\w-])[1-9][0-9]{0,18}-[0-9a-f]{16}(?![\w-])", re.ASCII).search


def reference_in(headers: Iterable[tuple[str, object]]) -> str | None:
    for name, value in headers:
        if name.lower() in _OURS and (found := _reference(one_line(value) or "")):
            return found[0]
    return None
