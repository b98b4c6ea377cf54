"""Which e-mails are duplicates of each other though their ids differ."""

from __future__ import annotations

import hashlib

import msgspec


class Window(msgspec.Struct, frozen=True):
    """The first e-mail with a ``key`` opens it. Whatever has the same key and comes within so many ``seconds`` of the
    first is its duplicate.
    """

    key: str
    seconds: int


def key_of(recipient: str, given: str | None, content: str) -> str:
    """64 hexadecimal digits, from the recipient in its one spelling and the client's key, or else the content's
    fingerprint. No key that a client can choose is another's fingerprint.
    """
    what = ["content", content] if given is None else ["key", given]
    return hashlib.sha256(msgspec.json.encode([recipient, *what])).hexdigest()
