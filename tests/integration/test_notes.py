"""A worker's note: what it proves, to whom, and when it proves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from emailsvc import outbox
from emailsvc.delivery import notes
from emailsvc.delivery.notes import LINES, Notebook, Noted, Unnoted, forget, left_behind
from emailsvc.mail.memory import MemoryTransport
from emailsvc.settings.config import Config
from emailsvc.wakeups.tasks import Crew
from tests.emails import accept, claim, row

TOKEN = "5" * 32
_DYING = """
import os, sys
from pathlib import Path
from emailsvc.delivery.notes import Notebook
note = Notebook(Path(sys.argv[1])).note()
note.claims(sys.argv[2])
for word in sys.argv[3:]:
    note.passes_dot() if word == "dot" else note.begins(int(word))
os.kill(os.getpid(), 9)
"""


def die_with_a_note(folder: Path, token: str, *steps: object) -> None:
    """A process of its own writes these steps and is killed."""
    words = [str(step) for step in steps]
    subprocess.run([sys.executable, "-c", _DYING, str(folder), token, *words], check=False)


def found(folder: Path) -> list[Noted]:
    return [noted for _, lines in left_behind(folder) for noted in lines]


@pytest.mark.parametrize(
    ("steps", "noted"),
    [
        ([], Noted(TOKEN, 0, False)),
        ([7], Noted(TOKEN, 7, False)),
        ([7, "dot"], Noted(TOKEN, 7, True)),
        ([7, "dot", 123456789], Noted(TOKEN, 123456789, False)),
    ],
)
def test_a_killed_process_leaves_its_last_step(tmp_path: Path, steps: list[object], noted: Noted) -> None:
    die_with_a_note(tmp_path, TOKEN, *steps)
    assert found(tmp_path) == [noted]


def test_a_process_that_lives_is_left_alone_however_long_it_is_silent(tmp_path: Path) -> None:
    book = Notebook(tmp_path)
    book.note().claims(TOKEN)
    assert found(tmp_path) == []
    os.close(book._file)
    assert found(tmp_path) == [Noted(TOKEN, 0, False)]


@pytest.mark.parametrize(
    "damage", [lambda t: t[:60], lambda t: t.replace(b"7 1", b"7 0"), lambda t: b"", lambda t: b"\xff" * len(t)]
)
def test_a_torn_line_is_not_believed(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    die_with_a_note(tmp_path, TOKEN, 7, "dot")
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert found(tmp_path) == []


def test_a_note_from_before_the_machine_was_started_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_with_a_note(tmp_path / "notes", TOKEN, 7)
    (tmp_path / "boot_id").write_text("00000000-0000-0000-0000-000000000000\n")
    monkeypatch.setattr(notes, "BOOT_ID", tmp_path / "boot_id")
    assert found(tmp_path / "notes") == []


def test_a_dot_that_cannot_be_noted_voids_what_was_noted_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume that copies what is overwritten may be full; a line that says "before the dot" must not stay behind."""
    book = Notebook(tmp_path)
    note, other = book.note(), book.note()
    note.claims(TOKEN)
    other.claims("6" * 32)
    note.begins(7)

    def no_space(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", no_space)
        note.passes_dot()
    os.close(book._file)
    assert found(tmp_path) == []


def test_another_accounts_file_hides_no_note(tmp_path: Path) -> None:
    (tmp_path / "0-a-folder").mkdir()  # as little to be opened as another account's file
    die_with_a_note(tmp_path, TOKEN)
    assert found(tmp_path) == [Noted(TOKEN, 0, False)]


def test_each_thread_has_a_line_and_one_too_many_has_none(tmp_path: Path) -> None:
    book = Notebook(tmp_path)
    for number in range(LINES):
        book.note().claims(f"{number:032x}")
    assert isinstance(book.note(), Unnoted)
    os.close(book._file)
    assert len({noted.token for noted in found(tmp_path)}) == LINES


def test_a_notebook_is_kept_while_a_claim_may_be_on_its_way(tmp_path: Path) -> None:
    die_with_a_note(tmp_path, TOKEN)
    (path,) = tmp_path.iterdir()
    forget(path, 60)
    assert path.exists()
    forget(path, 0)
    assert not path.exists()


@pytest.mark.parametrize(
    ("begun", "dot", "given_back"),
    [(None, False, "abc"), (0, False, "abc"), (0, True, "bc"), (1, False, ""), (1, True, "")],
)
def test_what_a_note_proves_goes_back_and_nothing_else(
    engine: Engine, config: Config, begun: int | None, dot: bool, given_back: str
) -> None:
    """A note about a row above the lowest contradicts the order of work, so nothing of it is believed."""
    accept(engine, config, *"abc")
    made = claim(engine, config)
    row_id = 0 if begun is None else made.rows[begun].id
    assert outbox.recover(engine, made.token, row_id, config, dot_may_be_sent=dot) == len(given_back)
    assert [i for i in "abc" if row(engine, i).status == "pending"] == list(given_back)


def test_a_worker_that_starts_gives_back_what_the_killed_one_had_not_begun(engine: Engine, config: Config) -> None:
    accept(engine, config, *"abc")
    made = claim(engine, config)
    die_with_a_note(config.instance / "notes", made.token, made.rows[0].id, "dot")
    crew = Crew(config, engine, MemoryTransport, lambda: None)
    crew.recover()
    assert [row(engine, i).status for i in "abc"] == ["sending", "pending", "pending"]


def test_without_a_folder_for_notes_mail_goes_out_all_the_same(engine: Engine, config: Config) -> None:
    (config.instance / "notes").write_text("in the way")
    accept(engine, config)
    crew = Crew(config, engine, MemoryTransport, lambda: None)
    crew.drain()
    crew.recover()
    assert row(engine).status == "sent"
