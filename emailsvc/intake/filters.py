"""Which e-mails an operator means."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from emailsvc.errors import InvalidPayload
from emailsvc.intake import addresses
from emailsvc.intake.payload import Address, EmailId, Moment
from emailsvc.vocabulary import Priority, State

MAX_CONTAINED = 200

Contained = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_CONTAINED,
        description="A part of the last error, in capitals or not.",
        extra_json_schema={"pattern": addresses.ONE_LINE},
    ),
]


class EmailFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is given must hold. Times are when it was received, or, with the state `sent`, when it was sent."""

    user: Address | None = None
    state: State | None = None
    since: Moment | None = None
    until: Moment | None = None
    error: Contained | None = None
    priority: Priority | None = None
    duplicate_of: EmailId | None = None
    first_unsent: Annotated[bool, Meta(description="What was absorbed, and its first one was not sent.")] | None = None

    @property
    def is_about_absorbed(self) -> bool:
        return self.state is State.ABSORBED or self.duplicate_of is not None or bool(self.first_unsent)

    def check(self) -> None:
        """Raises InvalidPayload for what the declarations cannot say."""
        if self.user is not None:
            addresses.address(self.user, "user")
        if self.since is not None and self.until is not None and self.until <= self.since:
            raise InvalidPayload("invalid_field", "until must be later than since.", "until")
        if self.error is not None:
            addresses.one_line(self.error, "error")
            self._goes_only_with(State.FAILED, "error")
        if self.priority is not None:
            self._goes_only_with(State.PENDING, "priority")
        if self.duplicate_of is not None:
            addresses.one_line(self.duplicate_of, "duplicate_of")
        if self.is_about_absorbed and self.state is not None:
            self._goes_only_with(State.ABSORBED, "first_unsent" if self.first_unsent else "duplicate_of")

    def _goes_only_with(self, state: State, field: str) -> None:
        if self.state is not state:
            raise InvalidPayload("invalid_field", f"{field} goes only with the state {state}.", field)
