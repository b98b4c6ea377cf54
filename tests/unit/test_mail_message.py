"""What is sent is what was asked for: it comes back the same from a parser, and nothing can be smuggled in with it."""

from __future__ import annotations

import email
import email.header
import email.policy
import re
import tracemalloc
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from emailsvc.mail import Attachment, Message
from emailsvc.mail.header import Unbuildable, envelope_address
from emailsvc.mail.message import build
from tests.factories import a_message


def built(mail: Message, header: str | None = "X-Id") -> bytes:
    return build(mail, header).data


def parsed(raw: bytes) -> EmailMessage:
    return email.message_from_bytes(raw, policy=email.policy.default)


def decoded(raw: bytes, name: str) -> str:
    """A header as the old, simple reader of RFC 2047 sees it: the modern policy repairs too much for a comparison."""
    value = email.message_from_bytes(raw)[name]
    unfolded = re.sub(r"\r?\n(?=[ \t])", "", str(value))
    return str(email.header.make_header(email.header.decode_header(unfolded)))


def text_of(raw: bytes, subtype: str) -> str:
    part = parsed(raw).get_body((subtype,))
    assert part is not None
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content.decode(part.get_content_charset("ascii"))


def lines(text: str) -> str:
    """Line ends made equal; a single text gains a last one on its way."""
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")


one_line = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029"), max_size=300)
PIECES = ["\r", "\n", "\r\n", ".", " ", "\t", "=", "a", "ä", "\0", "x" * 1000, "--=_", "From ", "\x85"]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=2000) | st.lists(st.sampled_from(PIECES)).map(
    "".join
)
filenames = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\\u2028\u2029"), min_size=1)
attachments = st.builds(
    Attachment,
    filenames.filter(lambda name: len(name) < 256),
    st.sampled_from(["application/pdf", "text/csv; charset=utf-8", 'text/plain; charset="utf-8"; x=y', "image/png"]),
    st.binary(max_size=500),
)


@settings(max_examples=120)
@given(one_line, one_line, one_line.filter(bool), texts, st.none() | texts, st.lists(attachments, max_size=3))
@example("=?utf-8?q?a=0ABcc:_eve=40example.com?=", "a  b" * 90, "=?", "\r.\r\n", "\n.\n", [])
@example("x" * 998, "y " * 400 + "y", "z" * 255, "x" * 20_000, "ä" * 20_000, [])
@example(" leading", "trailing ", "\xa0", "no end", "a \nb\t\n \n", [Attachment("..", "image/png", b"\r\n.\r\n")])
def test_what_was_sent_is_what_a_reader_gets(
    subject: str, custom: str, email_id: str, body: str, html: str | None, files: list[Attachment]
) -> None:
    mail = a_message(
        subject=subject, email_id=email_id, body=body, html=html, headers={"X-A": custom}, attachments=files
    )
    raw = built(mail)
    assert decoded(raw, "Subject") == subject
    assert decoded(raw, "X-A") == custom
    assert decoded(raw, "X-Id") == email_id
    assert lines(text_of(raw, "plain")) == lines(body)
    assert html is None or lines(text_of(raw, "html")) == lines(html)
    found = list(parsed(raw).iter_attachments()) if files else []
    assert [(each.get_filename(), each.get_payload(decode=True)) for each in found] == [
        (email.utils.unquote(file.filename).strip(), file.content)  # this reader unquotes and strips, RFC 2231 does not
        for file in files
    ]
    _is_fit_for_the_wire(raw)


def _is_fit_for_the_wire(raw: bytes) -> None:
    assert raw.isascii()
    assert b"\0" not in raw
    assert raw.endswith(b"\r\n")
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", raw)
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    head = raw.partition(b"\r\n\r\n")[0]
    assert not re.search(rb"\r\n[ \t]*(?:\r\n|$)", head)


def test_the_headers_of_a_plain_mail() -> None:
    mail = a_message(reply_to="help@example.com", email_id="order-7")
    message = parsed(built(mail))
    assert parsedate_to_datetime(message["date"]) == datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
    assert message.items()[1:] == [
        ("Message-ID", mail.message_id),
        ("From", "shop@example.com"),
        ("To", "ada@example.com"),
        ("Subject", "Your order"),
        ("Auto-Submitted", "auto-generated"),
        ("MIME-Version", "1.0"),
        ("Reply-To", "help@example.com"),
        ("X-Id", "order-7"),
        ("Content-Type", 'text/plain; charset="us-ascii"'),
        ("Content-Transfer-Encoding", "7bit"),
    ]
    assert message.get_content() == "Thank you.\r\n"


def test_without_an_idempotency_header_there_is_none() -> None:
    assert b"order-" not in built(a_message(), header=None)


def test_the_same_mail_gives_the_same_bytes() -> None:
    mail = a_message(html="<p>Grüße</p>", attachments=[Attachment("a.pdf", "application/pdf", b"%PDF")])
    assert built(mail) == built(mail)


def test_the_parts_are_nested_as_readers_expect() -> None:
    files = [
        Attachment("a.pdf", "application/pdf", b"%PDF"),
        Attachment("ü.csv", "text/csv; charset=utf-8", b"\xc3\xbc"),
    ]
    message = parsed(built(a_message(html="<p>x</p>", attachments=files)))
    types = [part.get_content_type() for part in message.walk()]
    assert types == [
        *("multipart/mixed", "multipart/alternative", "text/plain", "text/html"),
        *("application/pdf", "text/csv"),
    ]
    csv = list(message.iter_attachments())[1]
    assert (csv.get_content(), csv.get_filename(), csv.get_content_disposition()) == ("ü", "ü.csv", "attachment")


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        ("short\n", "7bit"),
        ("x" * 900, "7bit"),
        ("x" * 901, "quoted-printable"),
        ("Grüße an alle, die das hier lesen", "quoted-printable"),
        ("Привет", "base64"),
        ("nul\0", "quoted-printable"),
    ],
)
def test_the_encoding_is_the_plainest_that_keeps_the_text(body: str, encoding: str) -> None:
    assert parsed(built(a_message(body=body)))["content-transfer-encoding"] == encoding


def test_a_long_link_stays_whole_in_list_unsubscribe() -> None:
    value = f"<https://example.com/{'u' * 800}>, <mailto:leave@example.com?subject=x>"
    raw = built(a_message(headers={"List-Unsubscribe": value, "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}))
    assert f"List-Unsubscribe: {value.replace(', ', f',{chr(13)}{chr(10)} ')}\r\n".encode() in raw
    assert b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n" in raw


def test_a_link_too_long_for_a_line_is_refused_rather_than_broken() -> None:
    with pytest.raises(Unbuildable, match="too long for a line"):
        built(a_message(headers={"List-Unsubscribe": f"<https://example.com/{'u' * 960}>"}))


def test_a_long_filename_is_continued() -> None:
    name = "😀" * 255
    raw = built(a_message(attachments=[Attachment(name, "application/pdf", b"")]))
    assert [each.get_filename() for each in parsed(raw).iter_attachments()] == [name]
    _is_fit_for_the_wire(raw)


def test_no_text_can_contain_the_boundary() -> None:
    first = built(a_message(body="a", html="b"))
    boundary = parsed(first).get_boundary()
    again = built(a_message(body=f"--{boundary}\nX: y\n\n--{boundary}--\n", html="b"))
    assert text_of(again, "plain").startswith(f"--{boundary}")
    assert text_of(again, "html") == "b"


# addresses


@pytest.mark.parametrize(
    ("address", "wire"),
    [
        ("ada@example.com", "ada@example.com"),
        ("Ada.Lovelace+news@Example.COM", "Ada.Lovelace+news@Example.COM"),
        ("no-reply@localhost", "no-reply@localhost"),
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
        ("jürgen@example.com", "jürgen@example.com"),
        ("o'hara@example.com", "o'hara@example.com"),
    ],
)
def test_an_address_on_the_wire(address: str, wire: str) -> None:
    assert envelope_address(address) == wire


BAD_ADDRESSES = [
    *("", "@", "a", "a@", "@b", "a@b@c", "a b@c", "a@b c", "<a@b>", "Ada <a@b.c>", "a@b,c@d", "a@b;c@d", '"a b"@c'),
    *("a@b\r\nBcc: c@d", "a@b\n", "a\0@b", "a@b> SIZE=1", "a@b>\r\nRCPT TO:<c@d", "a(c)@b", "a@[127.0.0.1]", "a@b..c"),
    *("a@b\u2028", "a@\u2028b", "a\x85@b", "a@straße.example", "a@ｅxample.com", "a@b\u200d.c", "a\u2028@b", "a@b."),
    *("x" * 65 + "@example.com", "a@" + "x" * 64 + ".com", "a@" + "x." * 130 + "com", "a@\udc80", "\udc80@b"),
]


@pytest.mark.parametrize("address", BAD_ADDRESSES, ids=ascii)
@pytest.mark.parametrize("where", ["from_address", "recipient", "reply_to"])
def test_what_is_not_one_bare_address_is_unbuildable(address: str, where: str) -> None:
    with pytest.raises(Unbuildable):
        built(a_message(**{where: address}))


def test_an_international_local_part_needs_smtputf8() -> None:
    letter = build(a_message(recipient="jürgen@bücher.example"))
    assert (letter.recipient, letter.international) == ("jürgen@xn--bcher-kva.example", True)
    assert f"\r\nTo: {letter.recipient}\r\n".encode() in letter.data
    assert build(a_message(reply_to="jürgen@example.com")).international
    assert not build(a_message(recipient="ada@bücher.example", subject="Grüße", body="Grüße")).international


# refusals


@pytest.mark.parametrize("name", ["", "X Y", "X:Y", "X\r\nY", "X\0", "Ä", "x" * 77, "X-\x7f"], ids=ascii)
def test_what_is_not_a_header_name_is_unbuildable(name: str) -> None:
    with pytest.raises(Unbuildable):
        built(a_message(headers={name: "x"}))


@pytest.mark.parametrize(
    "name",
    ["TO", "From", "subject", "Content-Type", "Message-Id", "X-ID", "Auto-Submitted", "Content-Transfer-Encoding"],
)
def test_a_header_of_ours_cannot_be_given_again(name: str) -> None:
    with pytest.raises(Unbuildable):
        built(a_message(headers={name: "eve@example.com"}))


def test_a_header_cannot_be_given_twice() -> None:
    with pytest.raises(Unbuildable, match="twice"):
        built(a_message(headers={"X-A": "1", "x-a": "2"}))


@pytest.mark.parametrize("content_type", ["text/csv\r\nX: y", "text/x; a=\n", "text/ä", "text/plain; a=" + "x" * 900])
def test_a_type_that_cannot_stand_in_its_line_is_unbuildable(content_type: str) -> None:
    with pytest.raises(Unbuildable):
        built(a_message(attachments=[Attachment("a", content_type, b"")]))


@pytest.mark.parametrize(
    "message_id", ["", "x", "a@b", "<a@b", "<a@b>\r\nX: y", "<a b@c>", "<@>", "<" + "x" * 999 + "@b>"]
)
def test_what_is_not_a_message_id_is_unbuildable(message_id: str) -> None:
    with pytest.raises(Unbuildable):
        built(a_message(message_id=message_id))


@pytest.mark.parametrize("where", ["subject", "body", "html", "email_id"])
def test_half_a_surrogate_pair_is_unbuildable(where: str) -> None:
    with pytest.raises(Unbuildable):
        built(a_message(**{where: "\ud800"}))


@pytest.mark.parametrize(
    ("line", "times"), [("<p>Hi there</p>\n", 2.6), ("<p>Доброе утро</p>\n", 6.0)], ids=["ascii", "other"]
)
def test_building_a_large_mail_takes_few_copies_of_it(line: str, times: float) -> None:
    mail = a_message(html=line * 100_000)
    size = len((mail.html or "").encode())
    tracemalloc.start()
    try:
        data = built(mail)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < times * size, f"{peak / size:.1f} times its size"
    html = parsed(data).get_body(("html",))
    assert html is not None
    assert html.get_content().replace("\r\n", "\n") == mail.html
