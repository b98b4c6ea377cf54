"""Bodies as providers document them (README.md says where), and ways to spoil them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

SAMPLES = Path(__file__).parent
REFERENCE = "4711-0f1e2d3c4b5a6978"
FILES = sorted(path for path in SAMPLES.glob("*/*") if path.suffix in (".json", ".eml"))
WAYS = 200


def name_of(path: Path) -> str:
    """Without the day on which the page was read."""
    return f"{path.parent.name}/{path.stem[len('2026-11-24-') :]}"


STRANGE: list[Any] = [
    *(None, True, 0, -1, 10**30, 1e308, "", "x" * 5000, "\x00\r\n", "\ud800", "ünï", [], {}, [[]], {"": {}}),
    *("1970-01-01T00:00:00Z", "9999-99-99T99:99:99Z", 253402300800, "4711-ffffffffffffffff", "{", "[1"),
]


def bytes_spoilt(raw: bytes, rng: random.Random) -> bytes:
    start, size = rng.randrange(len(raw)), rng.randint(1, 40)
    noise = bytes(rng.randrange(256) for _ in range(size))
    return rng.choice(
        [
            raw[:start],
            raw[start:],
            raw[:start] + raw[start + size :],
            raw[:start] + noise + raw[start:],
            raw[:start] + noise + raw[start + size :],
            raw[:start] + raw[start : start + 200] * 50 + raw[start:],
            raw[:start] + raw[start:].swapcase(),
            raw.replace(rng.choice([b'"', b"{", b":", b",", b"\n", b"-"]), b"", rng.randint(1, 5)),
        ]
    )


def value_spoilt(value: Any, rng: random.Random) -> Any:
    """One member, however deep, is replaced, left out or said twice."""
    if isinstance(value, str) and value.startswith("{") and rng.random() < 0.8:
        return json.dumps(value_spoilt(json.loads(value), rng))
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(STRANGE)
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    spoilt = value.copy()
    if rng.random() < 0.2:
        del spoilt[key]
    elif rng.random() < 0.2 and isinstance(spoilt, list):
        spoilt.append(spoilt[key])
    else:
        spoilt[key] = value_spoilt(value[key], rng)
    return spoilt


def spoilt(path: Path) -> list[bytes]:
    rng, raw, ways = random.Random(name_of(path)), path.read_bytes(), list[bytes]()
    for number in range(WAYS):
        if number % 2 and path.suffix == ".json":
            ways.append(json.dumps(value_spoilt(json.loads(raw), rng)).encode())
        else:
            ways.append(bytes_spoilt(raw, rng))
    return ways
