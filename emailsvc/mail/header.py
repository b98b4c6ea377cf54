"""Header fields and addresses as they go on the wire: folded, encoded, and never able to become two fields."""

from __future__ import annotations

import base64
import re
from urllib.parse import quote

from emailsvc.intake import addresses

CRLF = "\r\n"
COLUMNS = 78  # a line should be no longer, RFC 5322 §2.1.1
MAX_WORD = addresses.MAX_WORD
ENCODED_WORD = 75  # RFC 2047 §2

# The rules of a payload are not asked again. These guard the wire itself: one line, one field, one address, whatever
# came before.
_breaks = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]").search
_plain = re.compile(r"[!-~](?:[ -~]*[!-~])?|").fullmatch
_name = re.compile(r"[!-9;-~]{1,76}").fullmatch
_one_address = re.compile(r"[^\s\x00-\x20\x7f-\xa0\ud800-\udfff<>,;:\"()\[\]\\@]{1,64}@[A-Za-z0-9_.-]{1,253}").fullmatch
_simple_filename = re.compile(r"(?! )[A-Za-z0-9 _.+()@,#&~-]{1,100}(?<! )").fullmatch


class Unbuildable(ValueError):
    """This message cannot be put on the wire as it is; the text says why. Nothing is ever altered to make it fit."""


def field(name: str, text: str) -> str:
    """One unstructured field, folded, without its line end. Parsed back it is exactly ``text``."""
    if not _name(name):
        raise Unbuildable(f"{name[:76]!r} is not the name of a header field")
    if _breaks(text):
        raise Unbuildable(f"{name} contains control characters or line breaks")
    if addresses.has_too_long_a_word(name, text):
        raise Unbuildable(f"{name} has a word of more than {MAX_WORD} characters, too long for a line")
    if _plain(text) and "=?" not in text:
        if len(name) + 2 + len(text) <= COLUMNS:
            return f"{name}: {text}"
        # Folding between two blanks could leave a line of blanks alone, which RFC 5322 §3.2.2 forbids.
        if "  " not in text and max(map(len, text.split(" "))) <= MAX_WORD:
            return _fold(f"{name}:", text.split(" "))
    return _fold(f"{name}:", _encoded_words(text, COLUMNS - len(name) - 2))


def raw_field(name: str, text: str) -> str:
    """A field that has a grammar of its own and must not be folded."""
    if _breaks(text) or len(text) > MAX_WORD:
        raise Unbuildable(f"{name} contains control characters or line breaks, or is too long for a line")
    return f"{name}: {text}"


def _fold(line: str, words: list[str]) -> str:
    lines = []
    for position, word in enumerate(words):
        # The first word stays beside the name: a field that begins with an empty line confuses some readers.
        if position and len(line) + 1 + len(word) > COLUMNS:
            lines.append(line)
            line = ""
        line = f"{line} {word}"
    return CRLF.join([*lines, line])


def _encoded_words(text: str, room: int) -> list[str]:
    """RFC 2047 §5: whole characters in each word, at most 75 octets a word; blanks between words vanish in decoding."""
    words, chunk, most = [], b"", _octets(min(room, ENCODED_WORD))
    for character in text:
        octets = character.encode()
        if len(chunk) + len(octets) > most:
            words.append(chunk)
            chunk, most = b"", _octets(ENCODED_WORD)
        chunk += octets
    return [f"=?utf-8?b?{base64.b64encode(word).decode()}?=" for word in (*words, chunk)]


def _octets(columns: int) -> int:
    return max((columns - len("=?utf-8?b??=")) // 4 * 3, 6)


def envelope_address(address: str) -> str:
    """The address with its domain as A-labels; a non-ASCII local part stays.

    Raises Unbuildable for anything but one bare address, and for a domain that IDNA would turn into another one.
    """
    local, _, domain = address.rpartition("@")
    wire = f"{local}@{addresses.to_ascii(domain) or ''}"
    if not _one_address(wire):
        raise Unbuildable("an address is not exactly one bare address")
    return wire


def attachment_name(filename: str) -> str:
    """The Content-Disposition field; RFC 2231 for all but the plainest names, so that no quoting can go wrong."""
    if _breaks(filename):
        raise Unbuildable("an attachment's filename contains control characters or line breaks")
    start = "Content-Disposition: attachment"
    if _simple_filename(filename):
        return f'{start};{CRLF} filename="{filename}"'
    encoded = "utf-8''" + quote(filename, safe="")
    if len(encoded) <= MAX_WORD:
        return f"{start};{CRLF} filename*={encoded}"
    pieces = re.findall(r"(?:%..|[^%]){1,200}", encoded)
    return start + "".join(f";{CRLF} filename*{number}*={piece}" for number, piece in enumerate(pieces))
