"""A batch: each of its e-mails is judged by itself."""

from __future__ import annotations

import json
from typing import Annotated

import msgspec
from msgspec import Meta, Raw

from emailsvc.errors import InvalidPayload
from emailsvc.intake.decoding import decode, one_at_a_time, path_of_surrogate, read_leniently
from emailsvc.intake.payload import MAX_IN_BATCH, NewEmail, Rules, parse_email


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    emails: Annotated[list[Raw], Meta(max_length=MAX_IN_BATCH)]


_envelopes = msgspec.json.Decoder(_Envelope)


def parse_batch(raw: bytes, rules: Rules) -> list[NewEmail | InvalidPayload]:
    """One result per item, in order. What is wrong with an item is its result; trouble with the whole is raised."""
    return [_parse_item(item, rules) for item in _items(raw)]


def _items(raw: bytes) -> list[bytes]:
    try:
        return [bytes(item) for item in decode(_envelopes, raw).emails]
    except InvalidPayload as exc:
        if exc.code != "invalid_field" or exc.field is None or not exc.field.startswith("emails["):
            raise
        # A title cut in the middle of an emoji must not hold up the other e-mails: take the text apart leniently.
        with one_at_a_time:
            items = _items_leniently(raw)
        if items is None:
            raise
        return items


def _items_leniently(raw: bytes) -> list[bytes] | None:
    """None where the document, or what Python's parser makes of it, cannot be taken apart into e-mails."""
    try:
        document = read_leniently(raw)
        if not isinstance(document, dict) or not isinstance(document.get("emails"), list):
            return None
        decode(_envelopes, json.dumps(document | {"emails": [None] * len(document["emails"])}).encode())
        return [json.dumps(_without_state(item)).encode() for item in document["emails"]]
    except (ValueError, RecursionError):
        return None


def _without_state(item: object) -> object:
    """Any value may stand there, also one that Python reads and does not write as JSON (1e999)."""
    if not isinstance(item, dict) or path_of_surrogate(item.get("state"), "state"):
        return item
    return {name: value for name, value in item.items() if name != "state"}


def _parse_item(raw: bytes, rules: Rules) -> NewEmail | InvalidPayload:
    try:
        return parse_email(raw, rules)
    except InvalidPayload as exc:
        return exc
