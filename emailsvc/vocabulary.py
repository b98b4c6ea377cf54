"""The words that the database, the answers and the commands share, each written once."""

from __future__ import annotations

import enum


class Status(enum.StrEnum):
    """Where an e-mail stands, as the database has it."""

    PENDING = "pending"
    SENDING = "sending"
    SENT = "sent"
    FAILED = "failed"
    CANCELLED = "cancelled"


class State(enum.StrEnum):
    """The same as ``state`` in every answer."""

    PENDING = Status.PENDING
    SENDING = Status.SENDING
    SENT = Status.SENT
    FAILED = Status.FAILED
    CANCELLED = Status.CANCELLED
    ABSORBED = "absorbed"  # cancelled as the duplicate of another; a status of its own would rebuild the table

    @classmethod
    def of(cls, status: str, duplicate_of: str | None) -> State:
        return cls.ABSORBED if duplicate_of is not None and status == Status.CANCELLED else cls(status)


class Reason(enum.StrEnum):
    """Why an e-mail was given up."""

    REJECTED = "rejected"
    EXHAUSTED = "exhausted"
    EXPIRED = "expired"
    UNCERTAIN = "uncertain"
    UNREACHABLE = "unreachable"


class Resolution(enum.StrEnum):
    """What an operator decided about a dead letter."""

    REPLAYED = "replayed"
    DELIVERED = "delivered"
    DISCARDED = "discarded"


class Priority(enum.StrEnum):
    """In the order in which they are sent."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class Order(enum.StrEnum):
    """In which e-mails are listed."""

    NEWEST = "newest"
    DUE = "due"  # the longest overdue first


class OnUncertain(enum.StrEnum):
    """What becomes of an e-mail when nobody knows whether the mail server took it."""

    HOLD = "hold"
    RETRY = "retry"


class Outcome(enum.StrEnum):
    """What one conversation with the mail server came to."""

    SENT = "sent"
    DEFERRED = "deferred"
    REJECTED = "rejected"
    OUTAGE = "outage"
    UNCERTAIN = "uncertain"
    CUT = "cut"  # our own shutdown, before the final dot: nothing happened


ATTEMPT_OUTCOMES = (Outcome.DEFERRED, Outcome.REJECTED, Outcome.UNCERTAIN)
"""Those that leave a row of their own."""


class EventName(enum.StrEnum):
    """What a timeline tells of."""

    RECEIVED = "received"
    DEFERRED = Outcome.DEFERRED
    REJECTED = Outcome.REJECTED
    UNCERTAIN = Outcome.UNCERTAIN
    SENT = Outcome.SENT
    DEAD_LETTERED = "dead_lettered"
    CANCELLED = Status.CANCELLED
    ABSORBED = State.ABSORBED
    REPLAYED = Resolution.REPLAYED
    DELIVERED = Resolution.DELIVERED
    DISCARDED = Resolution.DISCARDED
    REPORTED = "reported"


class Report(enum.StrEnum):
    """What came back about an e-mail after the mail server took it, in Anymail's words. Others are ignored."""

    DELIVERED = "delivered"
    BOUNCED = "bounced"
    COMPLAINED = "complained"
    DEFERRED = Outcome.DEFERRED
    REJECTED = Outcome.REJECTED


class BounceKind(enum.StrEnum):
    """Hard: the address is bad and stays so. Soft: another e-mail may get through."""

    HARD = "hard"
    SOFT = "soft"


class DeliveryState(enum.StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    OUTAGE = "outage"


class ActionKind(enum.StrEnum):
    """What the journal tells of."""

    PAUSED = "paused"
    RESUMED = "resumed"
    OUTAGE_BEGAN = "outage_began"
    OUTAGE_ENDED = "outage_ended"
    REPLAYED = Resolution.REPLAYED
    DELIVERED = Resolution.DELIVERED
    DISCARDED = Resolution.DISCARDED
    CANCELLED = "cancelled"
    ERASED = "erased"
    MADE_DUE = "made_due"
    VIEWED = "viewed"  # its content
    STOPPED = "stopped"


class ActionState(enum.StrEnum):
    """Only what is moved bit by bit is ever ``running``."""

    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
