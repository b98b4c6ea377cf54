"""Loud little parsers of environment variables: a value, or Bad with what would have been allowed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from emailsvc.errors import InvalidPayload
from emailsvc.feedback.routes import READERS
from emailsvc.intake import addresses
from emailsvc.intake.signing import decode_secret

REDIS_URL = "a URL beginning with redis:// or rediss://, with a port that is a number and options that redis-py knows"
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


class Bad(ValueError):
    """What is allowed, as the rest of the sentence «NAME=value: expected …»."""


@dataclass(frozen=True, slots=True)
class SmtpServer:
    host: str
    port: int
    tls: str  # "implicit", "starttls" (required) or "none"
    user: str | None = None
    password: str | None = field(default=None, repr=False)


def number(low: float, high: float = 1e9) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise Bad(f"a number from {low:.10g} to {high:.10g}")
        return value

    return parse


def whole(low: int, high: int = 10**9) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise Bad(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise Bad(" or ".join(allowed))
        return text

    return parse


def log_level(text: str) -> str:
    return choice("DEBUG", "INFO", "WARNING", "ERROR")(text.upper())


def flag(text: str) -> bool:
    if text.lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise Bad("1 or 0")
    return text.lower() in ("1", "true", "yes", "on")


def words(text: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[\s,]+", text) if word)


def token_list(text: str) -> tuple[str, ...]:
    tokens = words(text)
    if any(len(token) < 16 or not token.isascii() for token in tokens):
        raise Bad("ASCII tokens of 16 or more characters, separated by blanks or commas")
    return tokens


def operator_tokens(text: str) -> tuple[tuple[str, str], ...]:
    """Names and tokens. A name may have two tokens, so that they can be rotated, and no token two names."""
    found = [re.fullmatch(r"([A-Za-z0-9._@-]{1,64}):([!-9;-~]{16,})", word) for word in words(text)]
    pairs = tuple((one[1], one[2]) for one in found if one)
    if len(pairs) < len(found) or len({token for _, token in pairs}) < len(pairs):
        raise Bad(
            "name:token, separated by blanks or commas, with names of up to 64 letters, digits and . _ @ -, "
            "ASCII tokens of 16 or more characters without a colon, and no token twice"
        )
    return pairs


def report_secrets(text: str) -> tuple[tuple[str, str], ...]:
    """Routes and secrets. A route may have two, so that they can be rotated."""
    found = [re.fullmatch(r"([a-z]+):([!-9;-~]{16,})", word) for word in words(text)]
    pairs = tuple((one[1], one[2]) for one in found if one and one[1] in READERS)
    if len(pairs) < len(found):
        raise Bad(
            "route:secret, separated by blanks or commas, with ASCII secrets of 16 or more characters without a colon; "
            f"the routes are {', '.join(READERS)}"
        )
    return pairs


def secret_list(text: str) -> tuple[str, ...]:
    secrets = words(text)
    for secret in secrets:
        try:
            decode_secret(secret)
        except ValueError as exc:
            raise Bad(
                "secrets as `flask secret` makes them (whsec_ and base64), separated by blanks or commas"
            ) from exc
    return secrets


def address(text: str) -> str:
    try:
        addresses.address(text, "MAIL_FROM")
    except InvalidPayload as exc:
        raise Bad("one e-mail address without a name, such as billing@example.com") from exc
    return text


def envelope_sender(text: str) -> str:
    """As it goes into the envelope: an address for which no mail server needs SMTPUTF8."""
    local, _, domain = address(text).rpartition("@")
    if not local.isascii():
        raise Bad("one e-mail address with an ASCII local part, such as bounces@example.com")
    return f"{local}@{addresses.to_ascii(domain)}"


def domains(text: str) -> tuple[str, ...]:
    domains = tuple(word.lower().rstrip(".") for word in words(text))
    if any("@" in domain or addresses.to_ascii(domain) is None for domain in domains):
        raise Bad("domain names, separated by blanks or commas")
    return domains


def database_url(text: str) -> str:
    scheme, _, rest = text.partition("://")
    # SQLAlchemy takes the first @ for the end of the password, and would quote the rest of it in its errors.
    if (
        scheme in ("postgres", "postgresql", "postgresql+psycopg")
        and _is_url(text)
        and urlsplit(text).netloc.count("@") <= 1
    ):
        thresholds = parse_qs(urlsplit(text).query, keep_blank_values=True).get("prepare_threshold", ["0"])
        if len(thresholds) > 1 or not re.fullmatch("[0-9]{1,9}", thresholds[0]):
            raise Bad("a whole number as prepare_threshold (0: no prepared statements)")
        return f"postgresql+psycopg://{rest}"
    if scheme == "sqlite" and re.fullmatch(r"/[^?#]+", rest) and ":memory:" not in rest:
        return text
    raise Bad(
        "postgres://user:password@host:port/name (percent-encode @ : / in the password), postgresql://… "
        "or sqlite:///file (a path, not :memory:)"
    )


def redis_url(text: str) -> str:
    if not text.startswith(("redis://", "rediss://", "unix://")) or not _is_url(text):
        raise Bad(REDIS_URL)
    return text


def _is_url(text: str) -> bool:
    try:
        return urlsplit(text).port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed
        return False


def smtp_url(text: str) -> SmtpServer:
    expected = "a URL like smtp://user:password@host:587 or smtps://…:465 (percent-encode @ : / in the password)"
    url = urlsplit(text) if _is_url(text) else urlsplit("")
    if url.scheme not in ("smtp", "smtps") or not url.hostname or url.path not in ("", "/") or url.fragment:
        raise Bad(expected)
    if url.query not in ("", "starttls=off") or (url.query and url.scheme == "smtps"):
        raise Bad(expected + "; the only option is ?starttls=off, of smtp://")
    if url.scheme == "smtps":
        tls, default_port = "implicit", 465
    elif url.query or url.hostname in LOOPBACK_HOSTS:
        tls, default_port = "none", 25 if url.hostname in LOOPBACK_HOSTS else 587
    else:
        tls, default_port = "starttls", 587
    user = unquote(url.username) if url.username else None
    password = unquote(url.password) if url.password else None
    return SmtpServer(url.hostname, url.port or default_port, tls, user, password)


def header_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", text) or addresses.is_ours(text):
        raise Bad("a header name of letters, digits and hyphens that no e-mail has already")
    return text
