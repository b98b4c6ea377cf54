"""The fingerprint's rule, and payloads that nobody thought of."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emailsvc.errors import InvalidPayload
from emailsvc.intake.batches import parse_batch
from emailsvc.intake.payload import EmailPayload, NewEmail, parse_email
from tests.unit.test_payload import MINIMAL, PDF, RULES, encode, parse


def by_the_rule(payload: dict[str, Any]) -> str:
    """The rule of `fingerprint` in other words."""
    fields = ("user", "subject", "body", "html", "from", "reply_to", "headers", "attachments")
    content = {name: payload[name] for name in fields if payload.get(name) not in (None, [], {})}
    if "attachments" in content:
        content["attachments"] = [
            one | {"content": hashlib.sha256(base64.b64decode(one["content"])).hexdigest()}
            for one in content["attachments"]
        ]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


FULL = MINIMAL | {
    "html": "<b>ü\u2028\u007f\u0001</b>",
    "from": "a@example.com",
    "reply_to": "b@example.com",
    "headers": {"X-B": "1", "X-A": "2", "x-z": "\U0001f600"},
    "attachments": [PDF],
}


def test_the_fingerprint_does_not_depend_on_how_the_json_was_written() -> None:
    once = parse_email(json.dumps(FULL).encode(), RULES).fingerprint
    backwards = dict(reversed(FULL.items())) | {"headers": dict(reversed(FULL["headers"].items()))}
    for raw in (
        json.dumps(FULL, ensure_ascii=False).encode(),
        json.dumps(backwards, indent=3).encode(),
        json.dumps(FULL).replace("/", "\\/").encode(),
    ):
        assert parse_email(raw, RULES).fingerprint == once
    assert once == by_the_rule(FULL)


def test_the_fingerprint_ignores_what_the_recipient_never_sees() -> None:
    unseen = {
        "email_id": "2",
        "send_at": "2030-01-01T00:00:00Z",
        "expires_at": "2031-01-01T00:00:00Z",
        "priority": "low",
        "on_uncertain": "retry",
        "dedupe_key": "k",
        "dedupe_window_seconds": 60,
        "state": 5,
        "headers": {},
        "attachments": [],
        "html": None,
    }
    assert parse(**unseen).fingerprint == parse().fingerprint == by_the_rule(MINIMAL)


def test_the_fingerprint_never_changes_between_versions() -> None:
    assert (
        parse(user="ada@example.com", body="Hello, Ada.").fingerprint
        == "4c0e97b7b3bdbddd5b8b3d6bd85672db9ab7f2d9e52db1588f28c5679ad63f27"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"user": "bob@example.com"},
        {"subject": "x"},
        {"body": "x"},
        {"html": ""},
        {"from": "b@example.com"},
        {"reply_to": "c@example.com"},
        {"headers": {"X-B": "1", "X-A": "3", "x-z": "\U0001f600"}},
        {"attachments": [PDF, PDF]},
        {"attachments": [PDF | {"filename": "b.pdf"}]},
        {"attachments": [PDF | {"content_type": "text/plain"}]},
        {"attachments": [PDF | {"content": "YQ=="}]},
        {"reply_to": None},
    ],
)
def test_the_fingerprint_sees_every_change_of_what_the_recipient_gets(change: dict[str, Any]) -> None:
    changed = parse_email(json.dumps(FULL | change).encode(), RULES)
    assert changed.fingerprint != by_the_rule(FULL)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet=st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet=st.characters()), inner, max_size=4),
    max_leaves=10,
)
field_names = st.sampled_from([one.encode_name for one in msgspec.structs.fields(EmailPayload)]) | st.text()


@settings(max_examples=400)
@given(st.dictionaries(field_names, anything, max_size=3))
def test_any_change_to_a_payload_is_refused_by_the_name_of_a_field_or_accepted(changes: dict[str, Any]) -> None:
    (result,) = parse_batch(b'{"emails":[' + encode(**changes) + b"]}", RULES)
    if isinstance(result, NewEmail):
        assert result.fingerprint == by_the_rule(MINIMAL | changes)
        return
    assert result.code in {"invalid_field", "missing_field", "unknown_field", "too_many"}
    assert result.field is not None
    assert any(result.field.startswith(name[:200]) for name in changes)


@given(anything)
def test_any_json_value_is_refused_or_accepted(value: object) -> None:
    raw = json.dumps(value).encode()
    for parser in (parse_email, parse_batch):
        with pytest.raises(InvalidPayload):
            parser(raw, RULES)


@given(st.binary())
def test_any_bytes_are_refused(raw: bytes) -> None:
    for parser in (parse_email, parse_batch):
        with pytest.raises(InvalidPayload):
            parser(raw, RULES)
