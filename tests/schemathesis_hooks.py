"""What JSON Schema cannot say about a request, so that generated ones can be held to it."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    path, body, query = case.operation.path, case.body, case.query or {}
    if path in ("/emails/{email_id}/send", "/emails/{email_id}/content") and case.method == "OPTIONS":
        return False  # an id may end so, too: then it is the address of that e-mail, with its own methods
    if path == "/actions" and "cursor" in query:
        return False  # of another query
    if not _times_are_in_order(query, "since", "until"):
        return False
    return not isinstance(body, dict) or _is_a_body(path, body)


def _is_a_body(path: str, body: dict[str, Any]) -> bool:
    ids = body.get("ids")
    if isinstance(ids, list) and any(isinstance(one, float) for one in ids):
        return False  # 1.0 is an integer to JSON Schema, and none to the decoder
    if path in ("/emails/search", "/emails/send"):
        return _is_a_filter(body) and (path == "/emails/search" or _names_something(body))
    if path in ("/stats/dead-letters/replay", "/stats/dead-letters/discard"):
        return _times_are_in_order(body, "since", "until") and _names_letters(body)
    if body.get("dedupe_key") is not None and body.get("dedupe_window_seconds") is None:
        return False
    return _times_are_in_order(body, "send_at", "expires_at") and _headers_are_distinct(body.get("headers"))


def _times_are_in_order(body: dict[str, Any], first: str, then: str) -> bool:
    start, end = body.get(first), body.get(then)
    # Offsets differ, so only what is plainly in order by its year stays in.
    return not (isinstance(start, str) and isinstance(end, str)) or start[:4] < end[:4]


def _headers_are_distinct(headers: Any) -> bool:
    return not isinstance(headers, dict) or len({name.lower() for name in headers}) == len(headers)


def _is_a_filter(body: dict[str, Any]) -> bool:
    """A cursor is refused by every search but its own."""
    state = body.get("state")
    return (
        _times_are_in_order(body, "since", "until")
        and (body.get("error") is None or state == "failed")
        and (body.get("priority") is None or state == "pending")
        and (state in (None, "absorbed") or not (body.get("first_unsent") or body.get("duplicate_of") is not None))
        and (body.get("order") != "due" or (state in (None, "pending") and not _is_about_absorbed(body)))
        and body.get("cursor") is None
    )


def _names_something(body: dict[str, Any]) -> bool:
    if _is_about_absorbed(body):
        return bool(body.get("first_unsent"))
    named = any(body.get(name) is not None for name in ("user", "state", "since", "until"))
    return body.get("state") in (None, "pending") and (named or bool(body.get("dry_run")))


def _is_about_absorbed(body: dict[str, Any]) -> bool:
    return body.get("state") == "absorbed" or bool(body.get("first_unsent")) or body.get("duplicate_of") is not None


def _names_letters(body: dict[str, Any]) -> bool:
    names = ("reason", "code", "domain", "error", "since", "until", "ids")
    return any(body.get(name) is not None for name in names) or bool(body.get("dry_run"))
