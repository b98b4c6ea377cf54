"""What tables are made of, beside what SQLAlchemy has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import BigInteger, Integer, String, text

BigId = BigInteger().with_variant(Integer, "sqlite")
ExactString = String(255).with_variant(String(255, collation="C"), "postgresql")  # compared byte for byte


def one_of(column: str, values: Iterable[str | int]) -> str:
    """The text of a CHECK."""
    shown = (str(value) if isinstance(value, int) else f"'{value}'" for value in values)
    return f"{column} IN ({', '.join(shown)})"


def where(condition: str) -> dict[str, Any]:
    """Of a partial index."""
    return {"postgresql_where": text(condition), "sqlite_where": text(condition)}
