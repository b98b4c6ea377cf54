"""Authentication. Every rule is a function that returns the reason for a refusal, or None.

With neither secrets nor tokens only this machine's own clients are served. That rule trusts an address, so it has to
hold against a browser on this machine: a foreign site can make it send requests, and can point a name of its own at
127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import re
from collections.abc import Iterable
from ipaddress import ip_address

from flask import request

from emailsvc import clock
from emailsvc.context import service
from emailsvc.errors import NotFound, ServiceError
from emailsvc.intake import signing
from emailsvc.web.reading import body

log = logging.getLogger("emailsvc.web")

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
PAGE_HEADER = "X-Requested-With"
"""Our own pages send it with what changes state. A foreign site cannot: the browser would ask us first (CORS)."""

REPORTS = "reports"
"""The blueprint of what providers post to."""

_PROXY_HEADERS = (
    *("Forwarded", "Via", "X-Real-IP", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP", "Fly-Client-IP"),
    *("Fastly-Client-IP", "X-Cluster-Client-IP", "X-Envoy-External-Address", "X-Original-Forwarded-For"),
)
_our_host = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE | re.ASCII).fullmatch


def refuse_strangers() -> None:
    """On every request, known route or not: with nothing configured, nobody from outside but the liveness probe."""
    config = service().config
    if request.endpoint == "health.healthz" or config.api_tokens or config.webhook_secrets or config.operator_tokens:
        return
    if request.blueprint == REPORTS and config.hears_reports:
        return  # a provider comes from anywhere, with a secret
    _raise(_not_this_machine("WEBHOOK_SECRETS or API_TOKENS"))


def require_operator() -> None:
    _raise(_not_operator())


def is_operator() -> bool:
    return _not_operator() is None


def operator_name() -> str:
    """Who an operator's request is from, for the journal. Names of ``OPERATOR_TOKENS`` have no blank."""
    config = service().config
    if config.operator_tokens:
        _, given = _credentials()
        return next(name for name, token in config.operator_tokens if _is_one_of(given, (token,)))
    return "an API token" if config.api_tokens else "this machine"


def require_client() -> None:
    """A token, or a signature over the body; on an unconfigured laptop, this machine."""
    config = service().config
    scheme, given = _credentials()
    if scheme == "bearer" and _is_one_of(given, config.api_tokens):
        return
    is_signed = any(name in request.headers for name in signing.HEADERS)
    if config.webhook_secrets and (is_signed or not (scheme and config.api_tokens)):
        try:
            signing.verify(config.webhook_secrets, request.headers.get, body, clock.utcnow().timestamp())
        except ServiceError as refusal:
            _raise(refusal)
    elif config.api_tokens:
        _raise(_bad_token(scheme, "API_TOKENS"))
    else:
        _raise(_not_this_machine("WEBHOOK_SECRETS or API_TOKENS"))


def require_reporter() -> None:
    """A secret of this very route, in a signature or as the password of HTTP Basic; or a token of an operator's."""
    config = service().config
    if not config.hears_reports:
        raise NotFound("Reports are not taken in: REPORT_SECRETS is not set.")
    name = (request.endpoint or "").rpartition(".")[2]
    secrets = [secret for route, secret in config.report_secrets if route == name]
    scheme, given = _credentials()
    if scheme == "basic" and _is_one_of(given, secrets):
        return
    if not scheme and any(header in request.headers for header in signing.HEADERS):
        keys = [secret for secret in secrets if signing.is_secret(secret)]
        try:
            signing.verify(keys, request.headers.get, body, clock.utcnow().timestamp())
        except ServiceError as refusal:
            _raise(refusal)
    elif not (config.operator_tokens or config.api_tokens) or _not_operator() is not None:
        _raise(_bad_secret(scheme))


def _bad_secret(scheme: str) -> ServiceError:
    if not scheme:
        text = "Send a signature, or HTTP Basic with this route's secret of REPORT_SECRETS as the password."
        return ServiceError(401, "token_required", text)
    return ServiceError(401, "bad_token", "The password is not this route's secret of REPORT_SECRETS.")


def _not_operator() -> ServiceError | None:
    config = service().config
    tokens = [token for _, token in config.operator_tokens] or config.api_tokens
    if not tokens:
        return _not_this_machine("OPERATOR_TOKENS or API_TOKENS")
    scheme, given = _credentials()
    if scheme not in ("bearer", "basic") or not _is_one_of(given, tokens):
        return _bad_token(scheme, "OPERATOR_TOKENS" if config.operator_tokens else "API_TOKENS")
    if scheme == "basic" and request.method not in SAFE_METHODS and PAGE_HEADER not in request.headers:
        return ServiceError(403, "cross_site", f"With Basic authentication this needs the header {PAGE_HEADER}.")
    return None


def _bad_token(scheme: str, setting: str) -> ServiceError:
    if not scheme:
        return ServiceError(401, "token_required", f"Send Authorization: Bearer with one of {setting}.")
    return ServiceError(401, "bad_token", f"The token is not one of {setting}.")


def _credentials() -> tuple[str, bytes]:
    """The scheme in lower case and the token's bytes (of Basic, the password); empty for none or malformed ones."""
    scheme, _, rest = request.headers.get("Authorization", "").strip().partition(" ")
    given = rest.strip().encode("latin-1", "replace")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2]
        except binascii.Error:
            given = b""
    return scheme.lower(), given


def _is_one_of(given: bytes, tokens: Iterable[str]) -> bool:
    # All are compared, so that the time taken does not tell which one came close.
    return sum(hmac.compare_digest(given, token.encode()) for token in tokens) > 0


def _not_this_machine(names: str) -> ServiceError | None:
    if not _is_loopback(request.remote_addr) or _came_through_a_proxy():
        return ServiceError(
            403, "not_configured", f"Only clients on this machine are served until {names} is set in its environment."
        )
    if not _our_host(request.headers.get("Host", "")):
        return ServiceError(403, "bad_host", f"Without {names} the host must be localhost, 127.0.0.1 or [::1].")
    if request.method not in SAFE_METHODS and _sent_by_a_foreign_site():
        return ServiceError(403, "cross_site", "A page of another site may not do this.")
    return None


def _is_loopback(address: str | None) -> bool:
    try:
        ip = ip_address(address or "")
    except ValueError:  # a UNIX socket has no address: there is a proxy in front
        return False
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def _came_through_a_proxy() -> bool:
    if request.environ.get("SERVER_PROTOCOL") == "HTTP/1.0":  # nginx's default, with none of the headers; no browser's
        return True
    return any(name in request.headers for name in _PROXY_HEADERS) or any(
        name.lower().startswith("x-forwarded-")
        for name in request.headers.keys()  # noqa: SIM118 - pairs otherwise
    )


def _sent_by_a_foreign_site() -> bool:
    """Browsers send both headers with what changes state, and pages cannot forge them; programs send neither."""
    if PAGE_HEADER in request.headers:
        return False
    origin = request.headers.get("Origin")
    same_origin = origin is None or origin.partition("://")[2] == request.headers.get("Host")
    return not same_origin or request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none")


def _raise(refusal: ServiceError | None) -> None:
    if refusal is None:
        return
    scheme, given = _credentials()
    fields = {"code": refusal.code, "method": request.method, "path": request.path, "remote": request.remote_addr}
    if given:
        fields |= {"scheme": scheme[:16], "token": f"{given[:3].decode('latin-1')}… ({len(given)} characters)"}
    log.warning("access_denied", extra={"fields": fields})
    raise refusal
