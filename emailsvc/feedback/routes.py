"""Where reports come in: a name in ``REPORT_SECRETS``, a path, and what makes events of a body."""

from __future__ import annotations

from collections.abc import Mapping

from emailsvc.feedback import dsn, own
from emailsvc.feedback.providers import PROVIDERS, Read

OWN = "mine"
READERS: Mapping[str, Read] = {OWN: own.read, "dsn": dsn.read, **PROVIDERS}


def path_of(name: str) -> str:
    return "/reports" if name == OWN else f"/reports/{name}"
