"""Unresolved dead letters by what they have in common."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Engine, Select, func, select

from emailsvc.clock import isoformat
from emailsvc.db.choosing import EVERY, UNRESOLVED, LetterFilter, own_attempt
from emailsvc.db.models import Attempt, DeadLetter, Email
from emailsvc.db.snapshots import snapshot
from emailsvc.reports import answers
from emailsvc.vocabulary import Reason

_word = re.compile(r"[^\s<>()\[\]{}\"'`,;:=|]+")


class _Key(NamedTuple):
    reason: str
    code: int | None
    enhanced: str | None
    error: str


class _Group(NamedTuple):
    letters: int
    first: datetime
    last: datetime

    def and_also(self, other: _Group) -> _Group:
        return _Group(self.letters + other.letters, min(self.first, other.first), max(self.last, other.last))


def letter_groups(
    engine: Engine, chosen: LetterFilter = EVERY, *, limit: int = 100, among: int | None = None
) -> answers.LetterGroups:
    """The largest groups first, by reason, the reply's codes and its words without what is each e-mail's own.

    ``among``: of no more than so many of the newest, because it takes the longer the more there are.
    """
    found: dict[_Key, _Group] = {}
    with snapshot(engine) as connection:
        for reason, code, enhanced, error, *rest in connection.execute(_counting(chosen, among)):
            key, group = _Key(reason, code, enhanced, normalised(error, code, enhanced)), _Group(*rest)
            found[key] = group.and_also(found[key]) if key in found else group
    largest = sorted(found.items(), key=lambda one: (-one[1].letters, one[0].reason, one[0].error))
    return answers.LetterGroups([_answer(*one) for one in largest[:limit]])


def _counting(chosen: LetterFilter, among: int | None) -> Select[*tuple[Any, ...]]:
    """One row for each text: what is each e-mail's own in it, SQLite could not tell."""
    attempt = own_attempt(Attempt.id).label("attempt")
    letters = select(DeadLetter.reason, DeadLetter.error, DeadLetter.created_at, attempt)
    letters = letters.where(UNRESOLVED, *chosen.conditions())
    if chosen.domain is not None:
        letters = letters.join(Email, Email.id == DeadLetter.email)
    if among is not None:
        letters = letters.order_by(DeadLetter.created_at.desc(), DeadLetter.id.desc()).limit(among)
    each = letters.subquery()
    common = (each.c.reason, Attempt.code, Attempt.enhanced, each.c.error)
    counted = select(*common, func.count(), func.min(each.c.created_at), func.max(each.c.created_at))
    return counted.select_from(each).outerjoin(Attempt, Attempt.id == each.c.attempt).group_by(*common)


def _answer(key: _Key, group: _Group) -> answers.LetterGroup:
    first, last = isoformat(group.first), isoformat(group.last)
    return answers.LetterGroup(Reason(key.reason), key.code, key.enhanced, key.error, group.letters, first, last)


def normalised(error: str, *codes: object) -> str:
    """Without what is each e-mail's own: addresses, and words with a digit in them that are none of ``codes``."""
    kept = {str(code) for code in codes}

    def shown(found: re.Match[str]) -> str:
        word = found[0]
        is_its_own = "@" in word or (word not in kept and any(ch.isdigit() for ch in word))
        return "…" if is_its_own else word

    return _word.sub(shown, error)
