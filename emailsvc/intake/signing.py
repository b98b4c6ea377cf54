"""Signatures on webhooks by the Standard Webhooks scheme, https://www.standardwebhooks.com (symmetric, ``v1``).

Svix, from whose scheme it was made, sends the same under names of its own.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets as _random
from collections.abc import Callable, Iterable

from emailsvc.errors import ServiceError

PREFIX = "whsec_"
TOLERANCE_SECONDS = 300
MIN_SECRET_BYTES = 16  # the scheme asks for 24 to 64; older secrets of other services are shorter
NEW_SECRET_BYTES = 32
MAX_SIGNATURES = 32  # a header of many candidates must not buy much work

PARTS = "id", "timestamp", "signature"
FAMILIES = "webhook", "svix"  # of a request that carries both in full, the first counts
HEADERS = [f"{family}-{part}" for family in FAMILIES for part in PARTS]


def make_secret() -> str:
    return PREFIX + base64.b64encode(_random.token_bytes(NEW_SECRET_BYTES)).decode()


def decode_secret(text: str) -> bytes:
    """The key of a secret, with ``whsec_`` before its base64 or without. Raises ValueError."""
    encoded = text.removeprefix(PREFIX)
    try:
        key = base64.b64decode(encoded.encode("ascii") + b"=" * (-len(encoded) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error) as exc:
        raise ValueError("a secret is whsec_ and base64") from exc
    if len(key) < MIN_SECRET_BYTES:
        raise ValueError(f"a secret has {MIN_SECRET_BYTES} or more bytes")
    return key


def is_secret(text: str) -> bool:
    try:
        decode_secret(text)
    except ValueError:
        return False
    return True


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``; ``timestamp`` is in seconds since 1970."""
    digest = _digest(decode_secret(secret), message_id.encode(), str(timestamp).encode(), body)
    return "v1," + base64.b64encode(digest).decode()


def verify(secrets: Iterable[str], header: Callable[[str], str | None], body: Callable[[], bytes], now: float) -> None:
    """Accept if a signature fits a secret and the time is within five minutes of ``now`` (seconds since 1970).

    ``header`` finds a header by its name; values are as WSGI gives them (bytes read as Latin-1). ``body`` is called
    once the headers are in order, so that a stranger's ten megabytes are not hashed for nothing.
    Raises ServiceError(401) and nothing else, whatever the headers hold, beside what ``body`` raises.
    """
    message_id, timestamp, signatures = _signed_headers(header)
    _check_time(timestamp, now)
    try:
        signed = message_id.encode("latin-1"), timestamp.encode("latin-1")
    except UnicodeEncodeError:
        raise _bad_signature() from None
    candidates = _decode_signatures(signatures)
    if not candidates:
        raise _bad_signature()
    content = body()
    # Every pair is compared, so that the time taken does not tell which secret or signature came close.
    expected = [_digest(decode_secret(secret), *signed, content) for secret in secrets]
    if not sum(hmac.compare_digest(one, other) for one in expected for other in candidates):
        raise _bad_signature()


def _signed_headers(header: Callable[[str], str | None]) -> list[str]:
    for family in FAMILIES:
        values = [header(f"{family}-{part}") or "" for part in PARTS]
        if all(values):
            return values
    raise ServiceError(
        401, "unsigned", "The request needs webhook-id, webhook-timestamp and webhook-signature (or svix-id and so on)."
    )


def _digest(key: bytes, message_id: bytes, timestamp: bytes, body: bytes) -> bytes:
    return hmac.digest(key, b"%b.%b.%b" % (message_id, timestamp, body), hashlib.sha256)


def _check_time(text: str, now: float) -> None:
    if not re.fullmatch(r"[0-9]{1,12}", text, re.ASCII):
        raise ServiceError(401, "bad_timestamp", "The signature's timestamp is not a number of seconds since 1970.")
    if abs(now - int(text)) > TOLERANCE_SECONDS:
        raise ServiceError(
            401,
            "stale_timestamp",
            f"The signature's timestamp is more than {TOLERANCE_SECONDS // 60} minutes from this server's time.",
        )


def _decode_signatures(text: str) -> list[bytes]:
    """Every well-formed ``v1`` signature; other versions and malformed ones are passed over, as the scheme says."""
    found = []
    for part in text.split(" ")[:MAX_SIGNATURES]:
        version, _, encoded = part.partition(",")
        if version != "v1":
            continue
        try:
            found.append(base64.b64decode(encoded.encode("ascii"), validate=True))
        except (UnicodeEncodeError, binascii.Error):
            continue
    return [signature for signature in found if len(signature) == hashlib.sha256().digest_size]


def _bad_signature() -> ServiceError:
    return ServiceError(401, "bad_signature", "No signature fits one of the configured secrets.")
