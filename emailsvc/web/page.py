"""Pages for a browser: templates in files, a style and a script of our own, and nothing from anywhere else."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from urllib.parse import quote

from flask import Flask, Response, render_template, request

from emailsvc.clock import isoformat, utcnow
from emailsvc.intake.filters import MAX_CONTAINED
from emailsvc.reports import MAX_COUNTED
from emailsvc.vocabulary import ActionKind, Priority, Reason, Status
from emailsvc.web.answers import MAX_MOVED

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
ASSETS = ("desk.css", "desk.js", "desk.svg")

_FOLDER = Path(__file__).parent / "assets"

_UNITS = ((86_400, "day"), (3_600, "h"), (60, "min"), (1, "s"))


def register(app: Flask) -> None:
    app.jinja_env.filters |= {
        "ago": ago, "utc": utc, "number": number, "counted": counted, "segment": segment, "common_part": common_part,
    }  # fmt: skip
    words = {"kinds": ActionKind, "reasons": Reason, "states": Status, "priorities": Priority}
    app.jinja_env.globals |= words | {"max_moved": MAX_MOVED}
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True


def is_wanted() -> bool:
    """A browser says so; curl takes what comes, and gets JSON."""
    return request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"


def is_visited() -> bool:
    """By somebody at a browser, and not by the script of a page, which reads what went wrong as JSON."""
    return is_wanted() and request.method == "GET" and "X-Requested-With" not in request.headers


def render(template: str, context: Mapping[str, object]) -> Response:
    document = render_template(template, now=isoformat(utcnow()), version=version(), **context)
    return Response(document, headers={"Content-Security-Policy": POLICY}, mimetype="text/html")


@cache
def asset(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()


@cache
def version() -> str:
    """Part of the addresses under which a browser keeps the assets."""
    return hashlib.sha256(b"".join(map(asset, ASSETS))).hexdigest()[:12]


def ago(moment: str, now: str) -> str:
    """``4 min ago``, or ``in 4 min``."""
    seconds = (datetime.fromisoformat(now) - datetime.fromisoformat(moment)).total_seconds()
    if abs(seconds) < 1:
        return "now"
    size, unit = next(one for one in _UNITS if one[0] <= abs(seconds))
    count = int(abs(seconds) // size)
    told = f"{count} {unit}{'s' if unit == 'day' and count > 1 else ''}"
    return f"{told} ago" if seconds > 0 else f"in {told}"


def utc(moment: str) -> str:
    return f"{moment[:10]} {moment[11:19]} UTC"


def number(value: int) -> str:
    return f"{value:,}"


def counted(value: int) -> str:
    return f"{MAX_COUNTED:,}+" if value > MAX_COUNTED else number(value)


def segment(text: str) -> str:
    """One segment of a path, whatever is in it."""
    return quote(text, safe="")


def common_part(error: str) -> str:
    """Of a group's error the longest part that every error in the group contains."""
    parts = (part.strip() for part in re.split(r"…|[\x00-\x1f\x7f-\x9f\u2028\u2029]", error))
    return max(parts, key=len)[:MAX_CONTAINED].strip()
