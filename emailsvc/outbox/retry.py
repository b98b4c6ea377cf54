"""When to try again. Pure arithmetic."""

from __future__ import annotations

import random

JITTER = 0.2


def backoff(attempt: int, base: float, cap: float) -> float:
    """Seconds to wait after failed attempt ``attempt`` (from 1): ``base × 2ⁿ⁻¹`` with ±20 % jitter, at most ``cap``.

    The jitter is applied before the cap, so the cap is a promise. The exponent is bounded so that a large attempt
    number cannot overflow a float.
    """
    delay = base * 2.0 ** min(attempt - 1, 60)
    return min(delay * random.uniform(1 - JITTER, 1 + JITTER), cap)
