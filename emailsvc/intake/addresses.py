"""Rules for the texts that end up in a header or an envelope: one source for the checks and for the published patterns.

Everything is refused rather than altered: a changed address is another recipient, a changed header another message.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator

from emailsvc.errors import InvalidPayload

MAX_ADDRESS = 254  # octets, RFC 5321 §4.5.3.1.3 less the angle brackets
MAX_LOCAL_PART = 64  # octets, RFC 5321 §4.5.3.1.1
MAX_WORD = 900  # what cannot be folded must still leave the line below 998 octets

# No control characters (C0, DEL, C1) and no Unicode line ends: nothing that a header field could break at.
PRINTABLE = r"[^\u0000-\u001f\u007f-\u009f\u2028\u2029]"
ONE_LINE = f"^{PRINTABLE}*$"
NO_NUL = r"^[^\u0000]*$"
FILENAME = r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029/\\]+$"

_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_\-]{0,61}[A-Za-z0-9_])?"
LOCAL_PART = rf"(?![^@]{{{MAX_LOCAL_PART + 1}}})[{_ATEXT}]+(?:\.[{_ATEXT}]+)*"
DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*"
ADDRESS = rf"^{LOCAL_PART}@{DOMAIN}$"
_WORD = r"[A-Za-z0-9!#$%&'*+\-.^_`|~]+"  # token, RFC 9110 §5.6.2
HEADER_NAME = f"^{_WORD}$"

_TYPE_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+\-]{0,126}"  # RFC 6838 §4.2
_PARAMETER = rf'; ?{_WORD}=(?:{_WORD}|"[ !#-\[\]-~]*")'
_COMPOSITE = r"(?![Mm][Uu][Ll][Tt][Ii][Pp][Aa][Rr][Tt]/|[Mm][Ee][Ss][Ss][Aa][Gg][Ee]/)"
CONTENT_TYPE = rf"^{_COMPOSITE}{_TYPE_NAME}/{_TYPE_NAME}(?:{_PARAMETER})*$"

FORBIDDEN_HEADERS = (
    *("from", "to", "cc", "bcc", "sender", "reply-to", "subject", "date", "message-id", "mime-version"),
    *("received", "return-path", "delivered-to", "authentication-results", "auto-submitted"),
    *("dkim-signature", "domainkey-signature"),
)  # fmt: skip
FORBIDDEN_PREFIXES = ("content-", "resent-", "arc-")

_one_line = re.compile(ONE_LINE).fullmatch
_filename = re.compile(FILENAME).fullmatch
_ascii_address = re.compile(ADDRESS).fullmatch
_ascii_domain = re.compile(DOMAIN).fullmatch
_unicode_local = re.compile(rf"[{_ATEXT}\u00a1-\U0010ffff]+(?:\.[{_ATEXT}\u00a1-\U0010ffff]+)*").fullmatch
_header_name = re.compile(HEADER_NAME).fullmatch
_content_type = re.compile(CONTENT_TYPE).fullmatch
# Fields whose readers are programs that do not decode RFC 2047.
_for_programs = re.compile(r"list-|references$|in-reply-to$", re.I).match


def one_line(text: str, field: str) -> None:
    if not _one_line(text):
        raise _invalid(field, "may not contain control characters or line breaks")


def no_nul(text: str, field: str) -> None:
    if "\0" in text:
        raise _invalid(field, "may not contain NUL characters")


def address(text: str, field: str) -> None:
    """One bare address. A non-ASCII domain must survive IDNA unchanged; a non-ASCII local part needs SMTPUTF8 later."""
    if _ascii_address(text) and len(text) <= MAX_ADDRESS:
        return
    _explain_address(text, field)


def _explain_address(text: str, field: str) -> None:
    one_line(text, field)
    if "<" in text or ">" in text:
        raise _invalid(
            field, "must be a bare address such as ada@example.com, without a display name or angle brackets"
        )
    if any(mark in text for mark in ",; ") or text.count("@") > 1:
        raise _invalid(field, "must be exactly one address; send one e-mail to each recipient")
    local, _, domain = text.partition("@")
    if not local or not domain:
        raise _invalid(field, "needs a local part, an @ and a domain, such as ada@example.com")
    if not _unicode_local(local) or any(ch.isspace() for ch in local):
        raise _invalid(field, "has a local part that is not a plain name such as ada or ada.lovelace+news")
    wire_domain = to_ascii(domain)
    if wire_domain is None:
        raise _invalid(field, "has an invalid domain, or one that IDNA changes")
    octets = len(local.encode())
    if octets > MAX_LOCAL_PART or octets + 1 + len(wire_domain) > MAX_ADDRESS:
        raise _invalid(field, f"is too long: at most {MAX_LOCAL_PART} octets before the @ and {MAX_ADDRESS} in all")


def to_ascii(domain: str) -> str | None:
    """The domain's A-labels. None where IDNA 2003 leads to another name (ß becomes ss, full-width dots, joiners)."""
    if domain.isascii():
        return domain if _ascii_domain(domain) else None
    try:
        encoded = domain.encode("idna").decode("ascii")
        back = encoded.encode("ascii").decode("idna")
    except UnicodeError:
        return None
    same = back.lower() == unicodedata.normalize("NFC", domain).lower()
    return encoded if same and _ascii_domain(encoded) else None


def canonical(address: str) -> str:
    """One spelling for all that reach the same person: NFC, lower case, the domain's A-labels."""
    local, _, domain = unicodedata.normalize("NFC", address).lower().rpartition("@")
    return f"{local}@{to_ascii(domain) or domain}"


MAX_VARIED_LETTERS = 6


def spellings(address: str) -> frozenset[str]:
    """Ways to write an address that a database tells apart though ``canonical`` does not; ASCII case is left to it.

    Letters beyond ASCII in both cases, composed and decomposed, and the domain in Unicode and as A-labels. A side of
    the @ that has more than ``MAX_VARIED_LETTERS`` of them is only in small letters, in capitals or capitalised.
    """
    key = canonical(address)
    local, _, domain = key.rpartition("@")
    written = {
        f"{one}@{other}"
        for one in _in_both_cases(local)
        for form in (domain, _to_unicode(domain))
        for other in _in_both_cases(form)
    }
    found = {address, *(unicodedata.normalize(form, one) for one in written for form in ("NFC", "NFD"))}
    return frozenset(one for one in found if canonical(one) == key)


def _to_unicode(domain: str) -> str:
    try:
        return domain.encode("ascii").decode("idna")
    except UnicodeError:
        return domain


def _in_both_cases(text: str) -> Iterator[str]:
    letters = [(one,) if one.isascii() else tuple({one, one.upper(), one.title()}) for one in text]
    if sum(len(ways) > 1 for ways in letters) <= MAX_VARIED_LETTERS:
        return map("".join, itertools.product(*letters))
    return iter({text, text.upper(), text.title(), text.capitalize()})


def address_in(text: str, domains: frozenset[str], field: str) -> None:
    """Also that its domain is one of ``domains`` (lower case); a domain may be written in Unicode or as A-labels."""
    address(text, field)
    domain = text.rpartition("@")[2].lower()
    if domain not in domains and to_ascii(domain) not in {to_ascii(one) for one in domains}:
        raise _invalid(field, "is not in the domains of MAIL_FROM and MAIL_FROM_DOMAINS")


def is_ours(name: str) -> bool:
    """A header field that the service sets, or that is not a client's to set."""
    return name.lower() in FORBIDDEN_HEADERS or name.lower().startswith(FORBIDDEN_PREFIXES)


def header(name: str, value: str, idempotency_header: str | None) -> None:
    field = f"headers.{name}"
    if not _header_name(name):
        raise _invalid(field, "is not a header name: letters, digits and hyphens, without blanks or a colon")
    if is_ours(name) or (idempotency_header and name.lower() == idempotency_header.lower()):
        raise _invalid(field, "is set by this service and may not be given")
    one_line(value, field)
    if has_too_long_a_word(name, value):
        raise _invalid(field, f"has a word of more than {MAX_WORD} characters, too long for a line")


def has_too_long_a_word(name: str, value: str) -> bool:
    """Other fields are encoded when they cannot be folded; these would not be understood."""
    return bool(_for_programs(name)) and max(map(len, value.split(" "))) > MAX_WORD


def filename(text: str, field: str) -> None:
    if not _filename(text):
        raise _invalid(field, "must be a file name without slashes, backslashes or control characters")


def content_type(text: str, field: str) -> None:
    if not _content_type(text):
        raise _invalid(
            field, "must be a media type such as application/pdf; multipart and message types may not be attached"
        )


def _invalid(field: str, rule: str) -> InvalidPayload:
    return InvalidPayload("invalid_field", f"{field} {rule}.", field)
