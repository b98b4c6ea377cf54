"""What the pages need beside the answers of the other routes: a place to search, their style and script."""

from __future__ import annotations

from flask import Response, request

from emailsvc.errors import NotFound
from emailsvc.web import page
from emailsvc.web.contract import Routes

blueprint = Routes("desk", __name__)

_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


@blueprint.declare("GET", "/stats/search", "operator", "A page to search on", answers={200: "text/html"})
def search() -> Response:
    """What is searched for stands behind the # of its address, which no browser sends and no platform logs."""
    return page.render("search.html", {})


@blueprint.declare(
    "GET", "/stats/assets/{asset}", "operator", "Style and script of the pages",
    answers={200: tuple(_TYPES.values())}, codes=("not_found",),
)  # fmt: skip
def asset(asset: str) -> Response:
    if asset not in page.ASSETS:
        raise NotFound(f"There is no {asset!r}.")
    response = Response(page.asset(asset), mimetype=_TYPES[asset.rpartition(".")[2]])
    # During a deploy a page may ask a process of the other release.
    is_its_own = request.args.get("v") == page.version()
    response.headers["Cache-Control"] = "private, max-age=31536000, immutable" if is_its_own else "no-store"
    return response
