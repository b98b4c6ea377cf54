"""JSON into declared structures, and msgspec's complaints into answers that name the field."""

from __future__ import annotations

import enum
import json
import re
import threading
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

import msgspec

from emailsvc.errors import InvalidPayload

T = TypeVar("T")

_FIELD_NAMED = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)
_WITH_PATH = re.compile(r"(.*) - at (`key` in )?`\$(.*)`", re.DOTALL)
_WRONG_TYPE = re.compile(r"Expected `(\w+)(?: \| null)?`, got `(\w+)`")
_TYPES = {
    "str": "a string", "int": "a number", "float": "a number", "bool": "a boolean",
    "array": "an array", "object": "an object", "datetime": "a time", "null": "null",
}  # fmt: skip
_RULES = {
    "Expected `(?:str|array)` of length >= 1": "may not be empty",
    "Expected `str` of length <= ([0-9]+)": "may have at most {} characters",
    "Expected `(?:array|object)` of length <= ([0-9]+)": "may have at most {} entries",
    "Expected `(?:int|float)` >= ([0-9]+(?:[.][1-9]+)?)(?:[.]0)?": "must be at least {}",
    "Expected `(?:int|float)` <= ([0-9]+)(?:[.]0)?": "must be at most {}",
    "Expected `float` that's a multiple of 1.0": "must be a whole number",
    "Invalid base64 encoded string": "must be base64 with padding",
    "Invalid RFC3339 encoded datetime|Expected `datetime` with a timezone component":
        "must be a time with an offset, such as 2030-01-31T08:00:00Z",
}  # fmt: skip
"""What msgspec says of a declared limit, and what is allowed."""

_MAX_SHOWN = 200
_surrogate = re.compile("[\ud800-\udfff]").search

MAX_LENIENT_BYTES = 1024 * 1024
one_at_a_time = threading.RLock()
"""Held while a leniently read document lives: Python's objects take many times the memory of the bytes they are read
from, and saying which field is at fault must not cost more than one such document at a time."""


def decode(decoder: msgspec.json.Decoder[T], raw: bytes) -> T:
    """Raises InvalidPayload: invalid_json, missing_field, unknown_field, too_many or invalid_field."""
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as exc:
        raise translate(exc, decoder.type, raw) from exc
    except RecursionError as exc:
        raise InvalidPayload("invalid_json", "The JSON is nested too deeply.", _deep_field(raw)) from exc
    except ValueError as exc:  # msgspec.DecodeError, and UnicodeDecodeError for bytes that are not UTF-8
        field = _unreadable_field(raw)
        if field is not None:
            raise InvalidPayload(
                "invalid_field", f"{field} holds a lone surrogate, a byte that is not UTF-8, or NaN.", field
            ) from exc
        raise InvalidPayload("invalid_json", f"The body is not JSON: {exc}.") from exc


def convert(given: Mapping[str, object], kind: type[T]) -> T:
    """What was not given as JSON. Raises InvalidPayload."""
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as exc:
        raise translate(exc, kind) from exc


def translate(error: msgspec.ValidationError, kind: type, raw: bytes = b"") -> InvalidPayload:
    """What is wrong with ``raw``, or with another source of a ``kind``, in words for its client."""
    text, path = _split(str(error))
    named = _FIELD_NAMED.fullmatch(text)
    if named:
        wrong, name = named.groups()
        field = _join(path, name[:_MAX_SHOWN])
        if wrong == "missing required":
            return InvalidPayload("missing_field", f"{field} is required.", field)
        return InvalidPayload("unknown_field", f"{field} is not a field of this request.", field)
    if path.endswith("[...]"):
        path = _member_at_fault(raw, path.removesuffix("[...]"))
    if text.startswith("Invalid enum value"):
        return InvalidPayload("invalid_field", f"{path} is {_choices(kind, path)}.", path)
    kinds = _WRONG_TYPE.fullmatch(text)
    if kinds:
        wanted, given = (_TYPES.get(name, name) for name in kinds.groups())
        return InvalidPayload("invalid_field", f"{path or 'The body'} must be {wanted}, not {given}.", path or None)
    code = "too_many" if re.search(r"`(array|object)` of length <=", text) else "invalid_field"
    return InvalidPayload(code, f"{path or 'The body'} {_rule(text)}.", path or None)


def _rule(text: str) -> str:
    for complaint, rule in _RULES.items():
        if found := re.fullmatch(complaint, text):
            return rule.format(*found.groups())
    return f"is invalid: {text[:_MAX_SHOWN]}"


def _choices(kind: type, name: str) -> str:
    """The values of a declared enum, as in "high, normal or low"."""
    (declared,) = (field.type for field in msgspec.structs.fields(kind) if field.encode_name == name)
    *values, last = next(list[str](one) for one in (*get_args(declared), declared) if isinstance(one, enum.EnumType))
    return f"{', '.join(values)} or {last}"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _split(message: str) -> tuple[str, str]:
    found = _WITH_PATH.fullmatch(message)
    if not found:
        return message, ""
    text, in_key, path = found.groups()
    return text, path.removeprefix(".") + ("[...]" if in_key else "")


def _member_at_fault(raw: bytes, path: str) -> str:
    """msgspec writes ``headers[...]`` for a bad value in a mapping; find whose value it is."""
    try:
        with one_at_a_time:
            members = read_leniently(raw)[path]
            name = next(name for name, value in members.items() if not _fits_header(name, value))
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration, RecursionError):
        return path
    return path if _surrogate(name) else _join(path, name[:_MAX_SHOWN])


def _fits_header(name: str, value: object) -> bool:
    return isinstance(value, str) and 0 < len(name) <= 76 and len(value) <= 998


def _unreadable_field(raw: bytes) -> str | None:
    """The first field with a lone surrogate, a byte that is not UTF-8, or NaN; None when it is no JSON, or too long."""
    try:
        with one_at_a_time:
            return path_of_surrogate(read_leniently(raw))
    except (ValueError, RecursionError):
        return None


def read_leniently(raw: bytes) -> Any:
    """Python's own parser lets through what JSON cannot carry; here each such thing becomes a lone surrogate.

    Raises ValueError or RecursionError, and so for more than MAX_LENIENT_BYTES. Hold ``one_at_a_time`` round its use.
    """
    if len(raw) > MAX_LENIENT_BYTES:
        raise ValueError("too long to be read leniently")
    return json.loads(raw.decode("utf-8", "surrogateescape"), parse_constant=lambda _: "\ud800")


def path_of_surrogate(value: object, path: str = "") -> str | None:
    members: Iterable[tuple[str, object]]
    if isinstance(value, str):
        return path or None if _surrogate(value) else None
    if isinstance(value, dict):
        members = ((_join(path, name), member) for name, member in value.items())
    elif isinstance(value, list):
        members = ((f"{path}[{index}]", member) for index, member in enumerate(value))
    else:
        return None
    for where, member in members:
        if _surrogate(where):
            return path or None
        found = path_of_surrogate(member, where)
        if found:
            return found
    return None


def _deep_field(raw: bytes) -> str | None:
    """Only a field that takes any value can be nested deeply: every other one is refused at its first bracket."""
    names = re.findall(rb'"(state|emails)"\s*:\s*[\[{]', raw[:4096])
    return names[-1].decode() if names else None
