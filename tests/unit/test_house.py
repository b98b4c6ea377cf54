"""What the house promises about itself: layers, documents and tables that must stay in step with the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from emailsvc.db.models import BECOMES
from emailsvc.settings import config
from emailsvc.vocabulary import Status
from emailsvc.web import ROUTES
from emailsvc.web.codes import PROBLEM_CODES
from tests import documents

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "emailsvc"

LAYERS = [
    {"wsgi", "worker", "serving"},
    {"app"},
    {"web", "commands"},
    {"wakeups"},
    {"delivery"},
    {"outbox", "reports"},
    {"mail"},
    {"db", "log", "context"},
    {"settings"},
    {"feedback"},
    {"intake", "watchdog"},
    {"errors", "clock", "vocabulary", "__main__"},
]
"""Each row imports only from rows below it; the files of one package know each other."""

PURE = {"mail", "settings", "feedback", "intake", "watchdog", "errors", "clock", "vocabulary"}
NOT_IN_PURE = {"flask", "flask_sqlalchemy", "flask_migrate", "sqlalchemy", "redis", "huey", "psycopg"}
NOT_IN_DELIVERY = {"flask", "huey"}


def modules() -> Iterator[tuple[str, Path]]:
    """Every file of the application with the name of its row."""
    yield "wsgi", ROOT / "wsgi.py"
    for path in sorted(PACKAGE.rglob("*.py")):
        first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if first != "__init__" and "migrations" not in path.parts:
            yield first, path


def imports(path: Path) -> Iterator[str]:
    """What a file imports when it runs; what it imports for type checkers alone makes no dependency."""
    tree = ast.parse(path.read_text())
    for_types = {id(node) for block in ast.walk(tree) if _is_for_types(block) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def row_of(module: str) -> int:
    for number, row in enumerate(LAYERS):
        if module in row:
            return number
    raise AssertionError(f"emailsvc/{module} has no row in the layers of tests/unit/test_house.py")


def test_each_row_of_modules_imports_only_from_rows_below_it() -> None:
    wrong = []
    for module, path in modules():
        for name in imports(path):
            if not name.startswith("emailsvc."):
                continue
            other = name.split(".")[1]
            if other != module and other != "__version__" and row_of(other) <= row_of(module):
                wrong.append(f"{path.relative_to(ROOT)} imports emailsvc.{other}")
    assert not wrong


@pytest.mark.parametrize(("names", "forbidden"), [(PURE, NOT_IN_PURE), ({"delivery"}, NOT_IN_DELIVERY)])
def test_pure_modules_know_no_framework(names: set[str], forbidden: set[str]) -> None:
    found = {(module, name.split(".")[0]) for module, path in modules() if module in names for name in imports(path)}
    assert not {(module, name) for module, name in found if name in forbidden}


MOVES = PACKAGE / "outbox" / "moves"


def calls(tree: ast.AST, *names: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in names:
                yield node


def test_only_the_moves_write_a_status() -> None:
    """In a file that writes e-mails, nothing is called "status", be it a keyword or a key; and no SQL is by hand."""
    wrong = []
    for _, path in modules():
        tree = ast.parse(path.read_text())
        words = [
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        wrong += [f"{path.name}: {text}" for text in words if re.search(r"(?i)(update|insert into)\s+emails", text)]
        writes = [call for call in calls(tree, "update", "insert") if [ast.unparse(a) for a in call.args] == ["Email"]]
        if writes and path.parent != MOVES:
            wrong += [f"{path.name}: status=" for node in ast.walk(tree) if getattr(node, "arg", None) == "status"]
            wrong += [f"{path.name}: {text}" for text in words if text == "status"]
    assert not wrong


def test_the_moves_are_those_declared_beside_the_statuses() -> None:
    made = {
        tuple(Status[argument.attr] for argument in call.args[:2] if isinstance(argument, ast.Attribute))
        for path in MOVES.glob("*.py")
        for call in calls(ast.parse(path.read_text()), "turn", "turn_chosen")
    }
    assert made == {(before, after) for before, afters in BECOMES.items() for after in afters}


def test_no_package_exports_a_name_that_hides_one_of_its_modules() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        hidden = {other.stem for other in path.parent.iterdir()} - {"__init__"}
        names = [name.rpartition(".") for name in imports(path)]
        assert not [name for where, _, name in names if name in hidden and where != package], package


def test_no_function_is_named_like_its_module() -> None:
    """``from emailsvc.x import x`` would leave readers to guess which of the two it is."""
    named = [(path.stem, node) for _, path in modules() for node in ast.parse(path.read_text()).body]
    assert not [stem for stem, node in named if isinstance(node, ast.FunctionDef) and node.name == stem]


def test_no_helper_of_the_tests_is_named_like_a_class_of_the_package() -> None:
    classes = {node.name for path in PACKAGE.rglob("*.py") for node in classes_of(path)}
    found = [(path, node.name) for path in (ROOT / "tests").rglob("*.py") for node in classes_of(path)]
    assert not [f"{path.relative_to(ROOT)}: {name}" for path, name in found if name in classes]


def classes_of(path: Path) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef))


def test_no_file_is_longer_than_300_lines() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for _, path in modules()}
    assert not {str(path): length for path, length in lengths.items() if length > 300}


def test_the_readme_has_at_most_250_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250


@pytest.mark.parametrize(
    "path", [documents.ENV_EXAMPLE, *documents.READMES], ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_document_repeats_the_code_as_it_is(path: Path) -> None:
    assert path.read_text() == documents.written(path), "run python -m tests.documents"


def test_every_table_that_is_written_from_the_code_stands_in_one_document() -> None:
    found = [block for path in documents.READMES for _, block, _ in documents.BLOCK.findall(path.read_text())]
    assert sorted(found) == sorted(documents.BLOCKS)


def test_the_written_tables_hold_every_setting_with_its_default() -> None:
    shown = re.findall(r"^\| `([A-Z_]+)` \| (\S+) \|", documents.settings(), re.MULTILINE)
    assert shown == [(one.name, f"`{one.default}`" if one.default else "none") for one in config.SETTINGS]
    shown = re.findall(r"^# ([A-Z_]+)=(.*)$", documents.env_example(), re.MULTILINE)
    assert shown == [(one.name, one.default) for one in config.SETTINGS]


def test_the_procfile_has_the_three_processes() -> None:
    names = [line.partition(":")[0] for line in (ROOT / "Procfile").read_text().splitlines() if line.strip()]
    assert names == ["release", "web", "worker"]


def requirements(path: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and " @ " not in line]


def test_every_dependency_is_pinned() -> None:
    for path in (ROOT / "requirements.txt", ROOT / ".ci" / "requirements.txt"):
        for requirement in requirements(path):
            assert re.fullmatch(r"[a-z0-9-]+(\[[a-z]+\])?==[0-9][0-9a-z.]*( ; python_\S+ < \S+)?", requirement)


def test_what_the_dependencies_need_is_pinned_too() -> None:
    pinned = {re.split(r"[\[=]", requirement)[0] for requirement in requirements(ROOT / "requirements.txt")}
    needed = set()
    for name in pinned:
        with suppress(PackageNotFoundError):  # it is for another Python than this one
            needed |= {Requirement(text) for text in requires(name) or []}
    extras = ("", "binary")  # of psycopg
    applying = {
        need.name for need in needed if not need.marker or any(need.marker.evaluate({"extra": e}) for e in extras)
    }
    assert not {canonicalize_name(name) for name in applying} - pinned, "run .ci/pin"


def test_the_files_that_a_visitor_looks_for_are_there() -> None:
    for name in (
        "README.md",
        "CHANGELOG.md",
        "app.json",
        "LICENSE",
        ".env.example",
        ".python-version",
        "instance/.gitkeep",
    ):
        assert (ROOT / name).exists(), name


def test_every_problem_code_is_declared() -> None:
    assert PROBLEM_CODES.keys() == problem_codes() | {"bad_request", "method_not_allowed"}  # of werkzeug's own errors


def problem_codes() -> set[str]:
    """Those of the routes' table, and every literal with which an error is raised."""
    position = {"ServiceError": 1, "InvalidPayload": 0, "Conflict": 0}
    found = {code for route in ROUTES for codes in route.codes.values() for code in codes}
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in position:
                continue
            arguments = node.args[position[node.func.id] :]
            if arguments and isinstance(arguments[0], ast.Constant) and isinstance(arguments[0].value, str):
                found.add(arguments[0].value)
    return found
