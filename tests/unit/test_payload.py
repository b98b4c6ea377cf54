"""The payload: what is accepted, and how what is not is named."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from emailsvc.errors import InvalidPayload
from emailsvc.intake.batches import parse_batch
from emailsvc.intake.decoding import MAX_LENIENT_BYTES
from emailsvc.intake.payload import EmailPayload, NewEmail, Rules, parse_email
from emailsvc.mail import Attachment
from emailsvc.mail.message import build
from tests.factories import a_message, payload

RULES = Rules(frozenset({"example.com", "münchen.example"}), "X-Idempotency-Key")
MINIMAL = payload()
PDF = {"filename": "a.pdf", "content_type": "application/pdf", "content": base64.b64encode(b"%PDF").decode()}


def encode(**changes: Any) -> bytes:
    return json.dumps(MINIMAL | changes).encode()


def parse(**changes: Any) -> NewEmail:
    return parse_email(encode(**changes), RULES)


def refusal(raw: bytes) -> tuple[str, str | None]:
    with pytest.raises(InvalidPayload) as raised:
        parse_email(raw, RULES)
    assert raised.value.status == 400
    assert len(raised.value.detail) < 1000
    return raised.value.code, raised.value.field


def test_four_fields_are_enough() -> None:
    email = parse()
    assert (email.email_id, email.user, email.subject, email.body) == tuple(MINIMAL.values())
    assert (email.html, email.from_address, email.reply_to) == (None, None, None)
    assert (email.headers, email.attachments) == ({}, ())
    assert (email.send_at, email.expires_at, email.priority, email.on_uncertain) == (None, None, "normal", None)


def test_every_field_is_read() -> None:
    email = parse(
        html="<p>Hello</p>",
        **{"from": "billing@example.com"},
        reply_to="help@example.org",
        headers={"List-Unsubscribe": "<https://example.com/u>"},
        attachments=[PDF],
        send_at="2030-01-01T10:00:00+02:00",
        expires_at="2030-01-02T00:00:00Z",
        priority="high",
        on_uncertain="retry",
        state={"any": ["thing"]},
    )
    assert email.from_address == "billing@example.com"
    assert email.attachments[0].content == b"%PDF"
    assert email.send_at == datetime(2030, 1, 1, 8, tzinfo=UTC)
    assert email.send_at.utcoffset() == UTC.utcoffset(None)
    assert (email.priority, email.on_uncertain) == ("high", "retry")


def test_null_for_an_optional_field_is_as_if_it_were_absent() -> None:
    optional = [name for name in msgspec.structs.fields(EmailPayload) if not name.required]
    assert len(optional) == 12
    assert parse(**{name.encode_name: None for name in optional}) == parse()


ON_THE_WIRE: dict[str, dict[str, Any]] = {
    "plain": {"body": "Hello, Ada.\n" * 5000},
    "short lines": {"body": "\n" * 50_000},
    "one long line": {"html": "<p class='a'>Hello</p>" * 5000},
    "some umlauts": {"body": "Grüße aus München, wie versprochen.\n" * 2000},
    "all umlauts": {"body": "Привет, Ада\n" * 5000},
    "headers": {"headers": {f"X-{n}": "Привет" * 150 for n in range(50)}},
    "attachments": {"attachments": [PDF | {"content": base64.b64encode(bytes(20_000)).decode()}] * 20},
    "seven megabytes": {"attachments": [PDF | {"content": base64.b64encode(bytes(7_000_000)).decode()}]},
}


@pytest.mark.parametrize("name", ON_THE_WIRE)
def test_size_is_what_goes_over_the_wire_or_a_little_more(name: str) -> None:
    """7 MB attached are 9.6 MB there, and need the time of these."""
    email = parse(**ON_THE_WIRE[name])
    attachments = [Attachment(a.filename, a.content_type, a.content) for a in email.attachments]
    content = {"subject": email.subject, "body": email.body, "html": email.html, "headers": email.headers}
    sent = len(build(a_message(**content, attachments=attachments)).data)
    assert sent <= email.size <= sent * 1.1 + 2048 + 1024 * len(attachments)


ADDRESSES = [
    "ada@example.com",
    "a@b",
    "ada+news.letter@mail.example.co.uk",
    "o'brien@example.com",
    "root@localhost",
    "x@a_b.example",
    "a@xn--mnchen-3ya.example",
    "jörg@example.com",
    "ada@münchen.example",
    "用户@例え.jp",
    "a" * 64 + "@example.com",
]
NOT_ADDRESSES = [
    "",
    "ada",
    "ada@",
    "@example.com",
    "ada@example.com, bob@example.com",
    "ada@example.com;bob@example.com",
    "ada@example.com bob@example.com",
    "Ada <ada@example.com>",
    "<ada@example.com>",
    "ada@bob@example.com",
    '"ada, x"@example.com',
    "ada@[127.0.0.1]",
    "ada@-example.com",
    "ada@example..com",
    "ada@example.com.",
    ".ada@example.com",
    "ada..x@example.com",
    " ada@example.com",
    "ada@example.com ",
    "ada@exam ple.com",
    "a" * 65 + "@example.com",
    "é" * 33 + "@example.com",
    "a@" + "b." * 130 + "com",
    "a@" + "x" * 64,
    "ada@straße.example",
    "ada@example。com",
    "ada@" + "é" * 80,
    "a\u00a0b@example.com",
    "ada@exa\u200dmple.com",
    "a@b\u0130.com" * 30,
    "(x)ada@example.com",
    "ada@example.com\n",
    "ada@example.com\r\nBcc: eve@example.com",
    "ada\x00@example.com",
    "ada@example.com\u2028",
]


@pytest.mark.parametrize("user", ADDRESSES)
def test_it_takes_one_bare_address(user: str) -> None:
    assert parse(user=user, reply_to=user).user == user


@pytest.mark.parametrize("field", ["user", "reply_to", "from"])
@pytest.mark.parametrize("address", NOT_ADDRESSES)
def test_it_refuses_all_else_as_an_address(address: str, field: str) -> None:
    assert refusal(encode(**{field: address})) == ("invalid_field", field)


@pytest.mark.parametrize(
    "sender", ["a@example.com", "a@EXAMPLE.com", "a@münchen.example", "a@xn--mnchen-3ya.example", "ö@example.com"]
)
def test_from_may_be_in_the_allowed_domains(sender: str) -> None:
    assert parse(**{"from": sender}).from_address == sender


@pytest.mark.parametrize("sender", ["a@evil.com", "a@sub.example.com", "a@example.com.evil.com", "a@xn--a"])
def test_from_may_not_be_elsewhere(sender: str) -> None:
    assert refusal(encode(**{"from": sender})) == ("invalid_field", "from")


LINE_ENDS = ["\r", "\n", "\r\n", "\v", "\f", "\0", "\x1b", "\x7f", "\x85", "\u2028", "\u2029"]


@pytest.mark.parametrize("character", [*LINE_ENDS, "\t"])
def test_control_characters_and_line_ends_are_refused_in_every_header_field(character: str) -> None:
    text = f"a{character}Bcc: eve@example.com"
    assert refusal(encode(email_id=text)) == ("invalid_field", "email_id")
    assert refusal(encode(subject=text)) == ("invalid_field", "subject")
    assert refusal(encode(subject=f"a{character}")) == ("invalid_field", "subject")
    assert refusal(encode(headers={"X-A": text})) == ("invalid_field", "headers.X-A")
    assert refusal(encode(headers={f"X{character}": "a"})) == ("invalid_field", f"headers.X{character}")
    name = PDF | {"filename": text}
    assert refusal(encode(attachments=[PDF, name])) == ("invalid_field", "attachments[1].filename")
    kind = PDF | {"content_type": f"text/plain; a={text}"}
    assert refusal(encode(attachments=[kind])) == ("invalid_field", "attachments[0].content_type")


def test_the_body_may_hold_anything_but_nul_and_halves_of_characters() -> None:
    assert parse(body="".join(LINE_ENDS).replace("\0", "") + "\r\n.\r\n").body.endswith(".\r\n")
    assert parse(subject="", body="").body == ""
    for field in ("body", "html"):
        assert refusal(encode(**{field: "a\0b"})) == ("invalid_field", field)
        assert refusal(encode(**{field: "\ud800"})) == ("invalid_field", field)


FORBIDDEN = [
    "From", "To", "Cc", "Bcc", "Sender", "Reply-To", "Subject", "Received", "Return-Path", "DKIM-Signature", "ARC-Seal",
    "Message-ID", "Date", "MIME-Version", "Content-Type", "Content-Transfer-Encoding", "Resent-To", "Auto-Submitted",
    "X-Idempotency-Key",
]  # fmt: skip


@pytest.mark.parametrize("name", FORBIDDEN)
def test_headers_that_the_service_sets_are_refused_in_any_case(name: str) -> None:
    for spelling in (name, name.lower(), name.upper(), name.swapcase()):
        assert refusal(encode(headers={spelling: "x"})) == ("invalid_field", f"headers.{spelling}")


@pytest.mark.parametrize("name", ["X-Foo", "List-Unsubscribe-Post", "References", "X.y_z!", "x" * 76])
def test_other_headers_are_kept_as_they_are(name: str) -> None:
    assert parse(headers={name: "=?utf-8?q?x?= ü"}).headers == {name: "=?utf-8?q?x?= ü"}


@pytest.mark.parametrize("name", ["", "X Foo", "X:", "Ü", "X" * 77, "X\u20ac", "(x)", "a@b"])
def test_a_header_name_is_a_token(name: str) -> None:
    assert refusal(encode(headers={name: "x"})) == ("invalid_field", f"headers.{name}")


def test_the_header_at_fault_is_named_among_others() -> None:
    twice = encode().replace(b"}", b', "headers": {"X-A": 5, "X-A": "a"}}')
    assert refusal(twice) == ("invalid_field", "headers")
    assert refusal(encode(headers={"X-A": "a", "X-B": 5})) == ("invalid_field", "headers.X-B")
    assert refusal(encode(headers={"X-A": "a", "X-B": "b" * 999})) == ("invalid_field", "headers.X-B")
    assert refusal(encode(headers={"X-A": "a", "x-a": "a"})) == ("invalid_field", "headers.x-a")
    assert refusal(encode(headers={"X-A": "\udcff"})) == ("invalid_field", "headers.X-A")
    assert refusal(encode(headers={f"X-{n}": "" for n in range(51)})) == ("too_many", "headers")


def test_a_bad_header_is_named_unless_its_name_cannot_be_written() -> None:
    twice = encode().replace(b"}", b', "headers": {"a": 5, "\\ud800": 5, "a": "x"}}')
    assert refusal(twice) == ("invalid_field", "headers")


@pytest.mark.parametrize("name", ["List-Unsubscribe", "LIST-Help", "References", "in-reply-to"])
def test_a_word_that_no_line_can_hold_is_refused_where_programs_read(name: str) -> None:
    assert refusal(encode(headers={name: "a <" + "x" * 900})) == ("invalid_field", f"headers.{name}")
    assert parse(headers={name: "a " + "x" * 900}).headers
    assert parse(headers={f"X-{name}": "x" * 998}).headers


@pytest.mark.parametrize(
    "content_type",
    ["text/plain; charset=utf-8", 'text/plain;charset="utf 8"', "application/vnd.api+json", "IMAGE/PNG"],
)
def test_an_attachment_has_a_media_type(content_type: str) -> None:
    assert parse(attachments=[PDF | {"content_type": content_type}]).attachments[0].content_type == content_type


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"content_type": "multipart/mixed"}, "invalid_field", "content_type"),
        ({"content_type": "Message/rfc822"}, "invalid_field", "content_type"),
        ({"content_type": "text"}, "invalid_field", "content_type"),
        ({"content_type": "text/"}, "invalid_field", "content_type"),
        ({"content_type": "text/plain; x"}, "invalid_field", "content_type"),
        ({"content_type": "text/plain,text/html"}, "invalid_field", "content_type"),
        ({"content_type": ""}, "invalid_field", "content_type"),
        ({"content_type": "text/" + "x" * 300}, "invalid_field", "content_type"),
        ({"filename": ""}, "invalid_field", "filename"),
        ({"filename": "../etc/passwd"}, "invalid_field", "filename"),
        ({"filename": "a\\b"}, "invalid_field", "filename"),
        ({"filename": "x" * 256}, "invalid_field", "filename"),
        ({"filename": None}, "invalid_field", "filename"),
        ({"content": "YQ"}, "invalid_field", "content"),
        ({"content": "Y-_="}, "invalid_field", "content"),
        ({"content": "%%%%"}, "invalid_field", "content"),
        ({"content": 5}, "invalid_field", "content"),
        ({"inline": True}, "unknown_field", "inline"),
    ],
)
def test_a_bad_attachment_is_named_by_its_place(change: dict[str, Any], code: str, field: str) -> None:
    assert refusal(encode(attachments=[PDF, PDF | change])) == (code, f"attachments[1].{field}")


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"email_id": ""}, "email_id may not be empty."),
        ({"email_id": "x" * 256}, "email_id may have at most 255 characters."),
        ({"subject": "x" * 999}, "subject may have at most 998 characters."),
        ({"headers": {"X-A": "a" * 999}}, "headers.X-A may have at most 998 characters."),
        ({"headers": {f"X-{n}": "" for n in range(51)}}, "headers may have at most 50 entries."),
        ({"attachments": [PDF] * 51}, "attachments may have at most 50 entries."),
        ({"attachments": [PDF | {"content": "?"}]}, "attachments[0].content must be base64 with padding."),
        ({"send_at": "tomorrow"}, "send_at must be a time with an offset, such as 2030-01-31T08:00:00Z."),
        ({"send_at": "2030-01-01T00:00:00"}, "send_at must be a time with an offset, such as 2030-01-31T08:00:00Z."),
        ({"send_at": 5}, "send_at must be a time, not a number."),
    ],
)
def test_what_breaks_a_limit_is_answered_with_the_field_and_what_is_allowed(
    changes: dict[str, Any], detail: str
) -> None:
    with pytest.raises(InvalidPayload) as raised:
        parse(**changes)
    assert raised.value.detail == detail


def test_attachments_are_complete_and_not_too_many() -> None:
    for name in PDF:
        part = {key: value for key, value in PDF.items() if key != name}
        assert refusal(encode(attachments=[part])) == ("missing_field", f"attachments[0].{name}")
    assert len(parse(attachments=[PDF] * 50).attachments) == 50
    assert refusal(encode(attachments=[PDF] * 51)) == ("too_many", "attachments")


@pytest.mark.parametrize(
    "moment",
    [
        "2030-01-01T00:00:00",
        "2030-01-01",
        "tomorrow",
        "",
        1893456000,
        "2030-13-01T00:00:00Z",
        True,
    ],
)
def test_a_moment_has_an_offset(moment: object) -> None:
    assert refusal(encode(send_at=moment)) == ("invalid_field", "send_at")
    assert refusal(encode(expires_at=moment)) == ("invalid_field", "expires_at")


def test_a_moment_beyond_the_calendar_is_its_end() -> None:
    email = parse(send_at="0001-01-01T00:00:00+01:00", expires_at="9999-12-31T23:59:59-01:00")
    assert (email.send_at, email.expires_at) == (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


def test_a_deadline_lies_after_the_start_and_may_be_past() -> None:
    noon = "2030-01-01T12:00:00Z"
    assert refusal(encode(send_at=noon, expires_at=noon)) == ("invalid_field", "expires_at")
    assert refusal(encode(send_at=noon, expires_at="2030-01-01T12:30:00+01:00")) == ("invalid_field", "expires_at")
    assert parse(expires_at="2001-01-01T00:00:00Z").expires_at == datetime(2001, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"email_id": ""}, "invalid_field", "email_id"),
        ({"email_id": "x" * 256}, "invalid_field", "email_id"),
        ({"email_id": "x" * 300}, "invalid_field", "email_id"),
        ({"email_id": 5}, "invalid_field", "email_id"),
        ({"email_id": None}, "invalid_field", "email_id"),
        ({"email_id": "\ud800"}, "invalid_field", "email_id"),
        ({"subject": "x" * 999}, "invalid_field", "subject"),
        ({"subject": float("nan")}, "invalid_field", "subject"),
        ({"body": float("inf")}, "invalid_field", "body"),
        ({"body": ["a"]}, "invalid_field", "body"),
        ({"headers": []}, "invalid_field", "headers"),
        ({"attachments": {}}, "invalid_field", "attachments"),
        ({"priority": "urgent"}, "invalid_field", "priority"),
        ({"priority": "x" * 100_000}, "invalid_field", "priority"),
        ({"on_uncertain": True}, "invalid_field", "on_uncertain"),
        ({"expire_at": "2030-01-01T00:00:00Z"}, "unknown_field", "expire_at"),
        ({"sender": "a@example.com"}, "unknown_field", "sender"),
        ({"to` - at `$.user": 1}, "unknown_field", "user.to"),
        ({"state": float("nan")}, "invalid_field", "state"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], code: str, field: str) -> None:
    assert refusal(encode(**changes)) == (code, field)


def test_of_a_choice_the_allowed_values_are_named() -> None:
    with pytest.raises(InvalidPayload) as raised:
        parse(priority="HIGH")
    assert raised.value.detail == "priority is high, normal or low."
    with pytest.raises(InvalidPayload) as raised:
        parse(on_uncertain="x")
    assert raised.value.detail == "on_uncertain is hold or retry."


@pytest.mark.parametrize("name", list(MINIMAL))
def test_a_missing_field_is_named(name: str) -> None:
    raw = json.dumps({key: value for key, value in MINIMAL.items() if key != name}).encode()
    assert refusal(raw) == ("missing_field", name)


@pytest.mark.parametrize("state", [None, 1, 10**400, "x", [], {"a": {"b": [1.5, None]}}, True])
def test_state_alone_is_ignored_whatever_it_is(state: object) -> None:
    assert parse(state=state) == parse()


@pytest.mark.parametrize(
    ("raw", "code", "field"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b"null", "invalid_field", None),
        (b"[]", "invalid_field", None),
        (b'"text"', "invalid_field", None),
        (b"NaN", "invalid_json", None),
        (encode() + b"x", "invalid_json", None),
        (b"\xef\xbb\xbf" + encode(), "invalid_json", None),
        (encode().decode().encode("utf-16"), "invalid_json", None),
        (b"[" * 10_000, "invalid_field", None),
        (b'{"body":' + b"[" * 10_000, "invalid_field", "body"),
        (b'{"state":' + b"[" * 10_000, "invalid_json", "state"),
        (b'{"state":' * 10_000, "invalid_json", "state"),
        (encode(subject="S").replace(b'"S"', b'"\xff"'), "invalid_field", "subject"),
        (b"email_id=1&user=a%40b", "invalid_json", None),
        (b'{"email_id":"a"', "invalid_json", None),
    ],
)
def test_what_is_no_json_object_is_refused(raw: bytes, code: str, field: str | None) -> None:
    assert refusal(raw) == (code, field)


def test_a_batch_gives_one_result_per_item_in_order() -> None:
    items = [
        MINIMAL,
        MINIMAL | {"user": "nobody"},
        5,
        None,
        MINIMAL | {"email_id": "2"},
        MINIMAL | {"subject": "\ud800"},
    ]
    results = parse_batch(json.dumps({"emails": items}).encode(), RULES)
    found = [result.email_id if isinstance(result, NewEmail) else result.field for result in results]
    assert found == ["m-1", "user", None, None, "2", "subject"]


@pytest.mark.parametrize(
    ("raw", "code", "field"),
    [
        (b"{}", "missing_field", "emails"),
        (b'{"emails": {}}', "invalid_field", "emails"),
        (b'{"emails": [], "more": 1}', "unknown_field", "more"),
        (json.dumps({"emails": [MINIMAL] * 1001}).encode(), "too_many", "emails"),
        (b'{"emails": [{]}', "invalid_json", None),
        (b'{"emails": ["\\ud800"], "more": 1}', "unknown_field", "more"),
        (b'{"emails": [' + b'"\\ud800",' * 1000 + b"0]}", "too_many", "emails"),
        (b'{"emails":' + b"[" * 10_000, "invalid_json", "emails"),
        (json.dumps([MINIMAL]).encode(), "invalid_field", None),
        (b'{"emails[": 1}', "unknown_field", "emails["),
        (b'{"emails[": "\\ud800"}', "unknown_field", "emails["),
        (b'{"emails[a": "\\ud800", "emails": 5}', "unknown_field", "emails[a"),
        (b'{"emails": ["\\ud800"], "emails[a": "\\ud800"}', "unknown_field", "emails[a"),
        (b'{"emails": ["\\ud800"], "emails": 5, "emails[a": "\\ud800"}', "invalid_field", "emails[a"),
        (b'{"emails": ["\\ud800", ' + b"9" * 5000 + b"]}", "invalid_json", None),
    ],
)
def test_what_is_wrong_with_a_whole_batch_is_raised(raw: bytes, code: str, field: str | None) -> None:
    with pytest.raises(InvalidPayload) as raised:
        parse_batch(raw, RULES)
    assert (raised.value.code, raised.value.field) == (code, field)


def test_a_broken_character_makes_no_difference_to_the_neighbours() -> None:
    broken = json.dumps(MINIMAL | {"subject": "\ud83d"})
    neighbours = ["1e999", '[1e999, {"a": [null]}]', '"\\ud83d"', '["\\ud83d", 1e999]', "NaN", '"a"']
    items = [json.dumps(MINIMAL).replace("}", f', "state": {state}}}') for state in neighbours]
    found = parse_batch(f'{{"emails": [{", ".join([broken, *items])}]}}'.encode(), RULES)
    alone = parse_batch(f'{{"emails": [{items[0]}]}}'.encode(), RULES)
    assert found[1] == alone[0]
    fields = [one.field if isinstance(one, InvalidPayload) else one for one in found]
    assert fields == ["subject", found[1], found[1], "state", "state[0]", "state", found[1]]


@pytest.mark.parametrize("depth", range(100, 3000, 100))
def test_nesting_beside_a_broken_character_is_judged_or_refused(depth: int) -> None:
    deep = json.dumps(MINIMAL).replace("}", f', "state": {"[" * depth}{"]" * depth}}}')
    raw = f'{{"emails": [{json.dumps(MINIMAL | {"subject": chr(0xD800)})}, {deep}]}}'.encode()
    try:
        found = parse_batch(raw, RULES)
    except InvalidPayload:
        return
    assert [one.field if isinstance(one, InvalidPayload) else one.email_id for one in found] == ["subject", "m-1"]


def test_what_is_large_is_not_searched_for_the_field_at_fault() -> None:
    """Python's own parser takes many times the memory."""
    filler = "x" * MAX_LENIENT_BYTES
    assert refusal(encode(subject="\ud800", state="x")) == ("invalid_field", "subject")
    assert refusal(encode(subject="\ud800", state=filler)) == ("invalid_json", None)
    assert refusal(encode(headers={"a": 1}, state=filler)) == ("invalid_field", "headers")
    with pytest.raises(InvalidPayload) as raised:
        parse_batch(
            json.dumps({"emails": [MINIMAL | {"subject": "\ud800"}, MINIMAL | {"body": filler}]}).encode(), RULES
        )
    assert (raised.value.code, raised.value.field) == ("invalid_json", None)


def test_a_batch_may_be_full_or_empty() -> None:
    assert parse_batch(b'{"emails": []}', RULES) == []
    assert len(parse_batch(json.dumps({"emails": [MINIMAL] * 1000}).encode(), RULES)) == 1000


@pytest.mark.parametrize(
    ("change", "field", "detail"),
    [
        ({"email_id": 5}, "email_id", "email_id must be a string, not a number."),
        ({"html": True}, "html", "html must be a string, not a boolean."),
        ({"headers": {"X-A": None}}, "headers.X-A", "headers.X-A must be a string, not null."),
        ({"attachments": {}}, "attachments", "attachments must be an array, not an object."),
    ],
)
def test_a_wrong_type_is_named_in_plain_words(change: dict[str, Any], field: str, detail: str) -> None:
    with pytest.raises(InvalidPayload) as refused:
        parse(**change)
    assert (refused.value.field, refused.value.detail) == (field, detail)
