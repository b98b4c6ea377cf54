"""`python -m tests.documents` writes settings, routes, codes, log events and capacity into the documents."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from emailsvc.log import EVENTS
from emailsvc.settings.config import SETTINGS
from emailsvc.web import ROUTES
from emailsvc.web.codes import PROBLEM_CODES
from tests.benchmarks.capacity import default_plans, rows

ROOT = Path(__file__).resolve().parent.parent
ENV_EXAMPLE = ROOT / ".env.example"
READMES = (
    ROOT / "README.md",
    *(ROOT / "emailsvc" / room / "README.md" for room in ("commands", "feedback", "mail", "settings", "web")),
    ROOT / "tests" / "benchmarks" / "README.md",
)
BLOCK = re.compile(r"(<!-- (\w+): written by .*? -->\n).*?(<!-- end -->\n)", re.DOTALL)


def settings() -> str:
    rows = [(f"`{one.name}`", f"`{one.default}`" if one.default else "none", one.help) for one in SETTINGS]
    return _table(("name", "default", "meaning"), rows)


def routes() -> str:
    rows = [(f"`{one.method} {shown(one.path)}`", one.access, one.summary) for one in ROUTES]
    theirs = ("`POST /reports/<provider>`", "reporter", "The same, in a provider's words; `dsn` takes bounce mail")
    return _table(("route", "for", ""), list(dict.fromkeys(theirs if "/reports/" in row[0] else row for row in rows)))


def problems() -> str:
    rows = [(str(status), f"`{code}`", meaning) for code, (status, meaning) in PROBLEM_CODES.items()]
    return _table(("status", "code", "meaning"), rows)


def events() -> str:
    return _table(("event", "level", "meaning"), [(f"`{name}`", *rest) for name, rest in EVENTS.items()])


def capacity() -> str:
    heads, *lines = rows(default_plans())
    return _table(heads, lines)


def env_example() -> str:
    head = "# Copy to .env and remove the # before what you set. The environment wins; an empty value means unset.\n"
    return head + "".join(f"\n{_comment(one.help)}\n# {one.name}={one.default}\n" for one in SETTINGS)


BLOCKS = {"settings": settings, "routes": routes, "problems": problems, "events": events, "capacity": capacity}


def written(path: Path) -> str:
    """The whole document as it must read."""
    if path == ENV_EXAMPLE:
        return env_example()
    return BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]()}\n{found[3]}", path.read_text())


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def shown(path: str) -> str:
    return re.sub(r"{(?:(?:dead_letter|action)_)?(\w+)}", r"<\1>", path)


def _comment(text: str) -> str:
    return textwrap.fill(text[0].upper() + text[1:], 118, initial_indent="# ", subsequent_indent="# ")


if __name__ == "__main__":
    for document in (ENV_EXAMPLE, *READMES):
        document.write_text(written(document))
