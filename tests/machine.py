"""What the explored state machine is made of: actors that go one step at a time, a server that counts, a database.

The real ``Drain`` and ``sweep`` run in threads of their own, of which never more than one is awake. Each stops before
every transaction, before the dot and after it, and goes on when the machine says so, in the way that it says: the
transaction may fail, or commit and lose its answer; the server may take the dot now, later, or never. Clocks are the
machine's too.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import Connection, Engine, String, create_engine, delete, event, func, select, text, update
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from emailsvc import outbox
from emailsvc.db.connections import limit_postgresql, prepare_sqlite
from emailsvc.db.counts import TOTALS
from emailsvc.db.extensions import Base, engine_options
from emailsvc.db.models import Attempt, Email, Switch
from emailsvc.db.models import Counter as HourCounter
from emailsvc.db.sqltime import UtcDateTime, db_now
from emailsvc.delivery import batch, drain, lines, persisting
from emailsvc.delivery.drain import Drain
from emailsvc.delivery.notes import Note, Noted
from emailsvc.mail import Message, Outcome, Result
from emailsvc.outbox import InDoubt, SentTogether, refusals, rolling, sharing, switch
from emailsvc.settings.config import Config

DATABASE, BEFORE_DOT, AFTER_DOT = "before a transaction", "before the dot", "after the dot"
GO = object()
"""To an actor before the dot: send it."""

FAULTS = ("away", "rolled back", "lost", "deadlock")
"""Of a transaction: it never began · failed at its commit · is committed and nobody heard · broken as a deadlock."""


class Killed(BaseException):
    """kill -9: no handler of the code under test may run."""


class _Gone(Exception):
    sqlstate: str | None = None


def _failure(how: str) -> OperationalError:
    gone = _Gone(f"the connection is gone ({how})")
    gone.sqlstate = "40P01" if how == "deadlock" else None
    return OperationalError("(scripted)", None, gone)


class Unheard:
    """A connection whose answer gets lost, though what it was asked to do is done."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def execution_options(self, **options: Any) -> Unheard:
        self._connection.execution_options(**options)
        return self

    def __enter__(self) -> Connection:
        return self._connection

    def __exit__(self, *failure: object) -> None:
        self._connection.close()
        if failure == (None, None, None):
            raise _failure("lost")


class ScriptedEngine:
    """An engine whose every transaction asks first what will become of it."""

    def __init__(self, engine: Engine, ask: Callable[[], str]) -> None:
        self.engine, self.dialect, self._ask = engine, engine.dialect, ask

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        how = self._ask()
        if how == "away":
            raise _failure(how)
        with self.engine.begin() as connection:
            yield connection
            if how in ("rolled back", "deadlock"):
                raise _failure(how)
        if how == "lost":
            raise _failure(how)

    def connect(self) -> Connection | Unheard:
        how = self._ask()
        if how not in ("ok", "lost"):
            raise _failure(how)
        connection = self.engine.connect()
        return connection if how == "ok" else Unheard(connection)


@dataclass(eq=False)
class Dot:
    """A message whose final dot was sent. It is on its way until the server takes or refuses it."""

    message_id: str
    taken: bool = False


@dataclass
class Server:
    """Counts by Message-ID how often it took a message."""

    taken: Counter[str] = field(default_factory=Counter)
    on_the_way: list[Dot] = field(default_factory=list)

    def take(self, dot: Dot) -> None:
        self.on_the_way.remove(dot)
        dot.taken = True
        self.taken[dot.message_id] += 1


class Memo(Note):
    """A worker's note, which the machine may find after its death."""

    def __init__(self) -> None:
        super().__init__(-1, 0, "")
        self.last: Noted | None = None

    def _write(self, side: int) -> None:
        self.last = Noted(self._token, self._row_id, side == 1)


class Ear:
    """Counts what the delivery logs, in the place of its logger."""

    def __init__(self, seen: Counter[str]) -> None:
        self._seen = seen

    def log(self, _level: int, message: str, **_: Any) -> None:
        self._seen[f"logged {message}"] += 1

    def warning(self, message: str, **_: Any) -> None:
        self.log(logging.WARNING, message)

    error = exception = warning


class Actor:
    """A thread that runs only while the machine waits for it. ``at`` says where it stands; None is idle."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.at: str | None = None
        self.clock = 0.0
        self.stopping = threading.Event()
        self.memo, self.in_doubt = Memo(), InDoubt()
        self.tokens: set[str] = set()
        self.mail: Message | None = None
        self.dot: Dot | None = None
        self._job: Callable[[], object] | None = None
        self._order: Any = None
        self._drain: Drain | None = None
        self._error: BaseException | None = None
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<{self.name} {self.at or 'idle'}>"

    def start(self, job: Callable[[], object]) -> None:
        assert self.at is None
        self._job, self._order = job, None
        self._wake()

    def resume(self, order: Any) -> None:
        assert self.at is not None
        self._order = order
        self._wake()

    def settle(self) -> None:
        """All goes well with the database until the actor stands elsewhere."""
        for _ in range(200):
            if self.at != DATABASE:
                return
            self.resume("ok")
        raise AssertionError(f"{self.name} does not come to an end")

    def crash(self) -> None:
        if self.at is not None:
            self.resume(Killed())
        if self.memo.last is not None:
            self.world.left_behind.append(self.memo.last)
        self.memo, self.in_doubt = Memo(), InDoubt()
        self.tokens.clear()

    def end(self) -> None:
        self.crash()
        self._job = None
        self._go.release()

    def _wake(self) -> None:
        self.world.awake = self
        self._go.release()
        assert self._back.acquire(timeout=60), f"{self.name} is stuck"
        self.world.awake = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _live(self) -> None:
        while True:
            self._go.acquire()
            if self._job is None:
                return
            try:
                self._job()
            except (Killed, SQLAlchemyError):
                pass  # Huey calls a drain again that the database's error ended
            except BaseException as exc:  # noqa: BLE001 - raised where the machine waits
                self._error = exc
            self.at = self.mail = self.dot = None
            self._back.release()

    def wait(self, at: str) -> Any:
        """In the actor's thread: stand still until told how to go on. The dead do nothing more, whatever they try."""
        if isinstance(self._order, Killed):
            raise self._order
        self.at = at
        self._back.release()
        self._go.acquire()
        if isinstance(self._order, Killed):
            raise self._order
        return self._order

    def engine(self) -> Engine:
        return cast(Engine, ScriptedEngine(self.world.engine, self._ask))

    def _ask(self) -> str:
        return cast(str, self.wait(DATABASE)) if threading.current_thread() is self._thread else "ok"

    def drain(self) -> None:
        self.stopping = threading.Event()
        self.tokens.clear()
        nobody = lambda *_: None  # noqa: E731 - who is woken is the machine's to decide
        engine = self.engine()
        self._drain = Drain(
            engine, self.world.config, self, self.stopping, nobody, SentTogether(engine), self.memo, self.in_doubt
        )
        self.start(self._look_and_drain)

    def _look_and_drain(self) -> None:
        """As a worker process does."""
        assert self._drain is not None
        self.in_doubt.settle(self.engine(), self.world.config)
        self._drain.run()

    def shut_down(self) -> None:
        """SIGTERM, as the worker process takes it."""
        assert self._drain is not None
        self.stopping.set()
        self.stop(20)
        self._drain.hand_back()

    # The transport of a worker.

    def send(
        self, mail: Message, *, deadline: float, reply_timeout: float, passing_dot: Callable[[], None] = lambda: None
    ) -> Result:
        if self.stopping.is_set():
            return Result(Outcome.CUT, "shutting down")
        self.world.begins(mail)
        self.mail = mail
        order = self.wait(BEFORE_DOT)
        if order is GO and self.clock >= deadline:
            order = Result(Outcome.DEFERRED, "the deadline passed before the dot")
        if order is GO:
            passing_dot()
            self.dot = Dot(mail.message_id)
            self.world.server.on_the_way.append(self.dot)
            order = self.wait(AFTER_DOT)
        self.mail = self.dot = None
        if isinstance(order, Exception):
            raise order
        return cast(Result, order)

    def stop(self, grace: float) -> None:
        if self.at == BEFORE_DOT:
            self.resume(Result(Outcome.CUT, "shutting down"))

    def close(self) -> None:
        pass


class World:
    """One database for all examples, two workers and a sweeper; everything that chance would decide is decided here."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.engine = _engine(config)
        event.listen(self.engine, "commit", self._count_commit)
        self.server = Server()
        self.left_behind: list[Noted] = []
        self.awake: Actor | None = None
        self.begins: Callable[[Message], None] = lambda mail: None
        self.low_first = False
        self.seen: Counter[str] = Counter()
        self.commits = 0
        self.workers = [Actor(self, "worker A"), Actor(self, "worker B")]
        self.sweeper = Actor(self, "sweeper")
        self._tokens = 0

    @property
    def actors(self) -> list[Actor]:
        return [*self.workers, self.sweeper]

    def _count_commit(self, _connection: Connection) -> None:
        self.commits += 1

    def take_the_clocks(self, patch: pytest.MonkeyPatch) -> None:
        for module in (batch, persisting, lines):
            patch.setattr(module, "log", Ear(self.seen))
        for module in (drain, batch, sharing):
            patch.setattr(module, "monotonic", self._monotonic)
        patch.setattr(persisting, "time", SimpleNamespace(sleep=self._sleep))
        patch.setattr(switch, "time", SimpleNamespace(sleep=self._everybody_waits))
        patch.setattr(secrets, "token_hex", self._token)
        patch.setattr(secrets, "randbelow", lambda below: (below - 1) * self.low_first)
        patch.setattr(rolling, "SETTLED_SECONDS", 0.0)
        patch.setattr(rolling, "MIN_STEP_SECONDS", 0.0)
        for name in ("REFUSALS_IN_A_ROW", "UNEXPLAINED_IN_A_ROW", "REFUSED_DOMAINS"):
            patch.setattr(refusals, name, 2)

    def _monotonic(self) -> float:
        assert self.awake is not None
        self.awake.clock += 1e-6
        return self.awake.clock

    def _sleep(self, seconds: float) -> None:
        assert self.awake is not None
        self.awake.clock += seconds

    def _everybody_waits(self, seconds: float) -> None:
        for actor in self.actors:
            actor.clock += seconds + 1e-3

    def _token(self, _bytes: int) -> str:
        self._tokens += 1
        token = f"{self._tokens:032x}"
        if self.awake is not None:
            self.awake.tokens.add(token)
        return token

    def drain(self, worker: Actor, *, low_first: bool = False) -> None:
        self.low_first = low_first
        worker.drain()

    def begin_sweep(self) -> None:
        self.sweeper.start(lambda: outbox.sweep(self.sweeper.engine(), self.config))

    def reset(self) -> None:
        for actor in self.actors:
            actor.crash()
            actor.clock = 0.0
        self.server = Server()
        self.left_behind = []
        self._tokens = 0
        with self.engine.begin() as connection:
            for statement in self._emptying():
                connection.execute(text(statement))
            connection.execute(
                update(Switch).values(
                    paused_at=None, pause_reason=None, outage_since=None, outage_reason=None, next_probe_at=None,
                    probe_delay=5.0, refusals_from=None, rolled_up_to=db_now(),
                    letters_rolled_up_to=None, totals_up_to=None,
                )
            )  # fmt: skip

    def _emptying(self) -> list[str]:
        tables = ("actions", "reports", "dead_letters", "attempts", "attachments", "windows", "emails", "counters")
        if self.config.is_sqlite:
            return [f"DELETE FROM {table}" for table in tables]
        return [f"TRUNCATE {', '.join(tables)}"]

    def change(self, *statements: Any) -> int:
        """What time does to a table; nothing else is written past ``outbox``."""
        with self.engine.begin() as connection:
            return sum(connection.execute(statement).rowcount for statement in statements)

    def travel(self, seconds: float) -> None:
        """Everything that was ever noted was noted so much earlier."""
        statements = []
        for table in Base.metadata.tables.values():
            moments = [column.name for column in table.columns if isinstance(column.type, UtcDateTime)]
            if moments and table.name != "counters":  # their hours are labels, to be summed up anew
                earlier = {name: self._earlier(table.c[name], seconds) for name in moments}
                statements.append(update(table).values(earlier))
        anew = [delete(HourCounter).where(HourCounter.hour == TOTALS), update(Switch).values(totals_up_to=None)]
        self.change(*statements, *anew)

    def _earlier(self, column: Any, seconds: float) -> Any:
        if self.config.is_sqlite:
            moved = func.strftime("%Y-%m-%d %H:%M:%f", column, f"-{seconds:.0f} seconds", type_=String())
            return moved.concat("000")
        return column - func.make_interval(0, 0, 0, 0, 0, 0, seconds)

    def rows(self, statement: Any) -> list[Any]:
        with self.engine.connect().execution_options(read_only=True) as connection:
            return list(connection.execute(statement).all())

    def uncertain_attempts(self, row_id: int) -> int:
        counted = select(func.count(Attempt.id)).where(Attempt.email == row_id, Attempt.outcome == "uncertain")
        return int(self.rows(counted)[0][0])

    def close(self) -> None:
        for actor in self.actors:
            actor.end()
        self.engine.dispose()


def _engine(config: Config) -> Engine:
    """As the app makes it, but with one connection (nobody holds one while another is awake), and no care for disks."""
    options = engine_options(config) | {"pool_size": 1, "pool_pre_ping": False}
    engine = create_engine(config.database_url, **options)
    if config.is_sqlite:
        prepare_sqlite(engine)
        event.listen(engine, "connect", lambda connection, _record: connection.execute("PRAGMA synchronous=OFF"))
    else:
        limit_postgresql(engine)

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def _repeatable(_c: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> tuple[str, Any]:
        """The lot of a probe: even a seeded one falls by the order in which the rows happen to lie in the table."""
        return statement.replace("random()", "emails.id"), parameters

    return engine


EMAILS = select(Email).order_by(Email.id)
