"""The errors that callers are expected to tell apart."""

from __future__ import annotations


class ConfigurationError(Exception):
    """An environment variable is wrong: one line for the operator. Nothing catches it and goes on."""


class ServiceError(Exception):
    """Something a client can be told: an HTTP status, a stable code, a sentence, and the field at fault if any."""

    def __init__(self, status: int, code: str, detail: str, field: str | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.field = field
        self.email_id: str | None = None  # of the e-mail that is refused, where it can be told


class InvalidPayload(ServiceError):
    """400: the request's content is wrong; ``field`` names where (``headers.X-Foo``, ``attachments[0].content``)."""

    def __init__(self, code: str, detail: str, field: str | None = None) -> None:
        super().__init__(400, code, detail, field)


class NotFound(ServiceError):
    def __init__(self, detail: str) -> None:
        super().__init__(404, "not_found", detail)


class Conflict(ServiceError):
    """409: the e-mail or dead letter is not in a state that allows the operation; ``code`` says which state."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(409, code, detail)


def brief(exc: BaseException) -> str:
    """A database error's own words in one line, without the statement and its parameters, which are the mail."""
    lines = str(getattr(exc, "orig", None) or exc).strip().splitlines()
    return lines[0][:200] if lines else type(exc).__name__
