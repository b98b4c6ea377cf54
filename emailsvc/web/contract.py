"""A route is declared once, at its view: from that it is served, guarded, read, answered and published."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Literal, TypeVar, get_type_hints

import msgspec
from flask import Blueprint, Flask, Response, request
from werkzeug.routing import BaseConverter, IntegerConverter, Map, UnicodeConverter

from emailsvc.errors import ServiceError
from emailsvc.intake.addresses import PRINTABLE
from emailsvc.intake.payload import EmailId
from emailsvc.reports.answers import RowId
from emailsvc.web import auth, page
from emailsvc.web.codes import PROBLEM_CODES
from emailsvc.web.reading import answer, json_as, optional_json_as, query_as

Access = Literal["client", "operator", "reporter", "anyone"]
Codes = tuple[str, ...]  # of ``codes.py``, which knows their statuses
Content = type[msgspec.Struct] | str  # a declaration, or a media type for what is not JSON
Body = type[msgspec.Struct] | UnionType
View = TypeVar("View", bound=Callable[..., msgspec.Struct | Response])

_CLOSED = ("not_configured", "bad_host")
_OPERATOR = ("token_required", "bad_token", *_CLOSED, "cross_site", "database_unavailable")
_READS = ("invalid_json", "invalid_field", "missing_field", "unknown_field", "too_many", "incomplete_body", "too_large")
_READS_JSON = (*_READS, "not_json")
_BY_ACCESS: Mapping[Access, Codes] = {
    "client": ("unsigned", "bad_timestamp", "stale_timestamp", "bad_signature", *_OPERATOR),
    "operator": _OPERATOR,
    "reporter": ("unsigned", "bad_timestamp", "stale_timestamp", "bad_signature", *_OPERATOR, "not_found", *_READS),
    "anyone": _CLOSED,
}
_GUARDS: Mapping[Access, Callable[[], None]] = {
    "client": auth.require_client,
    "operator": auth.require_operator,
    "reporter": auth.require_reporter,
    "anyone": lambda: None,
}


class EmailIdConverter(BaseConverter):
    """Any id there can be, slashes included, also at its beginning (which Werkzeug's own ``path`` refuses)."""

    part_isolating = False
    regex = f"{PRINTABLE}+"
    weight = 200  # after every other rule


class RowIdConverter(IntegerConverter):
    """Werkzeug's own ``int`` also takes the digits of other scripts."""

    regex = "[0-9]+"

    def __init__(self, map: Map) -> None:
        super().__init__(map, max=2**63 - 1)


CONVERTERS: Mapping[str, type[BaseConverter]] = {
    "email_id": EmailIdConverter,
    "dead_letter_id": RowIdConverter,
    "action_id": RowIdConverter,
    "asset": UnicodeConverter,
}
PATH_PARAMETERS: Mapping[str, object] = {
    "email_id": EmailId,
    "dead_letter_id": RowId,
    "action_id": RowId,
    "asset": Literal[page.ASSETS],
}


@dataclass(frozen=True, eq=False)
class Route:
    method: str
    path: str
    access: Access
    summary: str
    answers: Mapping[int, Content | tuple[Content, ...]]  # by status
    more: Codes  # beside the codes of every route like it
    body: Body | None
    body_required: bool
    query: type[msgspec.Struct] | None
    template: str | None  # of the page that a browser gets instead

    @property
    def codes(self) -> dict[int, Codes]:
        """By status."""
        access = _BY_ACCESS[self.access] if self.path != "/healthz" else ()
        reads_json = self.body is not None and self.access != "reporter"  # who says of anything that it is anything
        declared = ("internal_error", *access, *self.more, *(_READS_JSON if reads_json else ()))
        statuses = sorted({PROBLEM_CODES[code][0] for code in declared})
        return {status: tuple(code for code in declared if PROBLEM_CODES[code][0] == status) for status in statuses}


class Routes(Blueprint):
    """A blueprint whose views are declared with all that is published of them."""

    def __init__(self, name: str, import_name: str) -> None:
        super().__init__(name, import_name)
        self.table: list[Route] = []
        self._guards: dict[str | None, Callable[[], None]] = {}
        self.before_request(self._guard)

    def _guard(self) -> None:
        """What is not declared, such as an OPTIONS view, is the operator's."""
        self._guards.get(request.endpoint, auth.require_operator)()

    def declare(
        self,
        method: str,
        path: str,
        access: Access,
        summary: str,
        *,
        answers: Mapping[int, Content | tuple[Content, ...]] | None = None,
        codes: Codes = (),
        body: Body | None = None,
        body_required: bool = True,
        template: str | None = None,
    ) -> Callable[[View], View]:
        """What the view returns is its answer 200, its parameters ``body`` and ``query`` are read from the request.

        ``answers`` and ``body`` are for views that write or read them themselves. A browser gets the ``template``.
        """

        def register(view: View) -> View:
            hints = get_type_hints(view)
            content = (hints["return"], "text/html") if template else hints["return"]
            route = Route(
                method, path, access, summary, answers or {200: content}, codes,
                body or hints.get("body"), body_required, hints.get("query"), template,
            )  # fmt: skip
            self.table.append(route)
            self._guards[f"{self.name}.{view.__name__}"] = _GUARDS[access]
            rule = re.sub(r"{(\w+)}", r"<\1:\1>", path)
            self.add_url_rule(
                rule, view.__name__, _answering(view, route, reads_body="body" in hints), methods=[method]
            )
            return view

        return register


def _answering(
    view: Callable[..., msgspec.Struct | Response], route: Route, *, reads_body: bool
) -> Callable[..., Response]:
    read = json_as if route.body_required else optional_json_as

    def answering(**arguments: object) -> Response:
        if reads_body and isinstance(route.body, type):
            arguments["body"] = read(route.body)
        if route.query is not None:
            arguments["query"] = query_as(route.query)
        if route.template is not None:
            return _page_or_json(route.template, view, arguments)
        content = view(**arguments)
        return content if isinstance(content, Response) else answer(content)

    return answering


def _page_or_json(
    template: str, view: Callable[..., msgspec.Struct | Response], arguments: Mapping[str, object]
) -> Response:
    try:
        content = view(**arguments)
        response = page.render(template, {"answer": content, **arguments}) if page.is_wanted() else answer(content)
    except ServiceError as refusal:
        if not page.is_visited():
            raise
        response = page.render("refusal.html", {"refusal": refusal})
        response.status_code = refusal.status
    response.headers["Vary"] = "Accept"
    return response


def routes_of(app: Flask) -> tuple[Route, ...]:
    return tuple(route for one in app.iter_blueprints() if isinstance(one, Routes) for route in one.table)
