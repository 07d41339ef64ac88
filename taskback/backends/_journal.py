"""The journal of a `DurableTaskBackend`: a SQLite file with a row for each task that has no outcome yet.

All SQL is here, and all of it runs on the journal's own thread, which has the connection. What callers bring while it
writes goes into the next transaction, all of it together (group commit). A transaction with new rows begins at once;
one with nothing but rows to remove waits `LINGER` for more, since nobody waits for it. Nothing wakes an idle journal.

Threads: insert(), remove() and the rest on any.
Locks: _lock is a leaf. _writing is held by the journal's thread while it is within SQLite, and by a fork of the program
for the moment in which it is made, so that none inherits SQLite's own locks taken; it is waited for FORK_PATIENCE.
Holds: an insertion is told that it is done when its transaction is in the file, and on the disk where `fsync` is set;
if it fails, nothing of it is in the file, or a removal of it waits. A row that cannot be removed now is removed with
the next transaction. Nothing else removes a row: an error of SQLite's never does.

Race: insert() and close(). Under _lock insert() finds the journal open and is counted as unsettled, or it is refused;
the thread ends no sooner than all of those were settled or removed, unless it is told not to wait any more.

WAL: a commit appends to a second file, which is copied into the first one now and then, and on closing. A process that
is killed loses nothing that was committed, with `fsync` or without. A power cut loses no commit with it; without it
perhaps the last ones, but never the file.
"""

import asyncio
import ctypes
import json
import logging
import os
import secrets
import sqlite3
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from taskback import _clock
from taskback._errors import JournalError
from taskback._mailbox import mailbox_of
from taskback.backends._marking import Marks, make_table
from taskback.backends._path_lock import PathLock

logger = logging.getLogger(__name__)

T = TypeVar("T")

APPLICATION: Final = 0x7461736B  # "task", in the file's header
SCHEMA: Final = 1
LINGER: Final = 0.02  # seconds that rows to be removed wait for others
FORK_PATIENCE: Final = 1.0  # seconds that a fork waits for a transaction; then it is made all the same

_CREATE: Final = (
    "CREATE TABLE tasks (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, type BLOB, task BLOB NOT NULL, options TEXT,"
    " submitted_at REAL NOT NULL, crashes INTEGER NOT NULL DEFAULT 0, quarantined INTEGER NOT NULL DEFAULT 0)",
    "CREATE TABLE life (key BLOB)",  # of its marks; NULL once it has closed the journal
    "INSERT INTO life VALUES (NULL)",
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {SCHEMA}",
)
_INSERT: Final = "INSERT OR REPLACE INTO tasks (seq, id, type, task, options, submitted_at) VALUES (?, ?, ?, ?, ?, ?)"
_SELECT: Final = (
    "SELECT seq, id, type, task, options, submitted_at, crashes FROM tasks WHERE quarantined = ? ORDER BY seq"
)


@dataclass(slots=True)
class Row:
    """A task as the journal keeps it; `options` are those of its submission but for its id, fit for JSON."""

    seq: int
    id: str
    type: str | None
    task: bytes
    options: dict[str, Any] = field(default_factory=dict)
    submitted_at: float = 0.0
    crashes: int = 0

    def values(self) -> tuple[Any, ...]:
        """What is bound to _INSERT."""
        options = json.dumps(self.options) if self.options else None
        return self.seq, _bytes(self.id), _bytes(self.type), self.task, options, self.submitted_at


class Insertion:
    """Rows on their way into the file, and whoever waits for that: one thread, or one coroutine."""

    __slots__ = ("_gate", "_waiter", "error", "rows", "tell")

    def __init__(self, rows: list[Row], loop: asyncio.AbstractEventLoop | None) -> None:
        self.rows = rows
        self.error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._gate: threading.Lock | None = None
        self.tell: Callable[[], object]
        if loop is None:
            self._gate = threading.Lock()
            self._gate.acquire()
            self.tell = self._gate.release
        else:
            self._waiter = loop.create_future()
            self.tell = partial(mailbox_of(loop).post, partial(_release, self._waiter))

    async def wait(self) -> None:
        """Until it is done, for good or ill."""
        assert self._waiter is not None
        await self._waiter

    def block(self, deadline: float) -> bool:
        """The same for a thread; False if it was not done in time."""
        assert self._gate is not None
        return self._gate.acquire(timeout=max(0.0, min(deadline - _clock.monotonic(), threading.TIMEOUT_MAX)))


def _release(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


class _Batch:
    """What goes into one transaction. A row is inserted and removed in this order, so both may be in one."""

    __slots__ = ("calls", "insertions", "removals")

    def __init__(self) -> None:
        self.insertions: list[Insertion] = []
        self.removals: list[int] = []
        self.calls: list[tuple[Callable[[sqlite3.Connection], Any], Future[Any]]] = []

    def __bool__(self) -> bool:
        return bool(self.insertions or self.removals or self.calls)


class Journal:
    """See the top of the file.

    Args:
        path (str): The file; `-wal`, `-shm`, `-lock` and `-running` beside it are the journal's too.
        fsync (bool): Whether a commit waits for the disk.
        name (str): Of its thread.
        budget (Callable[[str | None], int]): How many crashes a task of a type may be charged.
    """

    def __init__(self, path: str, fsync: bool, name: str, budget: Callable[[str | None], int]) -> None:
        self.path = path
        self.opened: Future[list[Row]] = Future()  # the tasks that a previous life left, in order
        self.closed: Future[None] = Future()
        self.life = secrets.token_bytes(16)
        self.marks = Marks(f"{path}-running", self.life)
        self._fsync = fsync
        self._budget = budget
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._writing = threading.Lock()
        self._next = _Batch()
        self._sleeps = False
        self._closing = False
        self._forced = False
        self._unsettled = 0
        self._seq = 0
        self._overdue: list[int] = []  # rows that could not be removed; the journal's thread's
        self._complained = False  # of those, once until all is well again
        self._db: sqlite3.Connection | None = None
        self._path_lock: PathLock | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    # --- what callers ask for ---

    def start(self) -> None:
        """Begin to open the file; `opened` tells."""
        _hold_forks_back(self)
        self._thread.start()

    def insert(self, rows: list[Row], loop: asyncio.AbstractEventLoop | None) -> Insertion | None:
        """Have rows written; None if the journal is closed. Each is to be settled or removed after that."""
        insertion = Insertion(rows, loop)
        with self._lock:
            if self._closing:
                return None
            for row in rows:
                self._seq += 1
                row.seq = self._seq
            self._unsettled += len(rows)
            self._next.insertions.append(insertion)
            if self._sleeps:
                self._wake.notify()
        return insertion

    def settle(self, rows: list[Row]) -> None:
        """Their tasks have been accepted."""
        with self._lock:
            self._unsettled -= len(rows)
            if self._closing:
                self._wake.notify()

    def withdraw(self, insertion: Insertion, rows: list[Row]) -> None:
        """These tasks of it have not been accepted, or it has failed: leave nothing of them in the file."""
        with self._lock:
            self._unsettled -= len(rows)
            if not _is_full(insertion.error):  # of a disk that is full nothing was written
                self._next.removals += [row.seq for row in rows]
            self._wake.notify()

    def remove(self, seq: int) -> None:
        """The outcome of a task is known. Nobody waits for this; it may be called in a callback."""
        with self._lock:
            self._next.removals.append(seq)
            if self._sleeps and len(self._next.removals) == 1:
                self._wake.notify()

    def ask(self, call: Callable[[sqlite3.Connection], T]) -> "Future[T] | None":
        """Have something done within a transaction; None if the journal is closed."""
        future: Future[T] = Future()
        with self._lock:
            if self._closing:
                return None
            self._next.calls.append((call, future))
            self._wake.notify()
        return future

    def close(self, force: bool = False) -> None:
        """Write what waits and close the file; `closed` tells. `force`: wait for no submission that is under way."""
        with self._lock:
            self._closing = True
            self._forced = self._forced or force
            self._wake.notify()

    @property
    def thread(self) -> threading.Thread:
        """Its own one."""
        return self._thread

    # --- the journal's thread ---

    def _run(self) -> None:
        try:
            with self._writing:
                left = self._open()
        except BaseException as error:
            self._end()
            self.opened.set_exception(self._told(error))
            self.closed.set_result(None)
            return
        self.opened.set_result(left)
        try:
            while (batch := self._take()) is not None:
                self._write(batch)
            self._close_file()
        except BaseException:
            logger.error("the journal %s was not closed in order", self.path, exc_info=True)
        finally:
            self._end()
            self.closed.set_result(None)

    def _take(self) -> _Batch | None:
        """What is to be written next; None at the end."""
        with self._lock:
            while True:
                batch = self._next
                if batch.insertions or batch.calls or (self._closing and batch):
                    break
                if self._closing and (self._forced or not self._unsettled):
                    return None
                self._sleeps = True
                more = self._wake.wait(LINGER if batch.removals else None)
                self._sleeps = False
                if not more and batch.removals:
                    break
            self._next = _Batch()
            return batch

    def _write(self, batch: _Batch) -> None:
        removals = self._overdue + batch.removals
        self._overdue = []
        try:
            self._commit(batch.insertions, removals)
        except Exception:  # one of them may be what cannot be written: each by itself, then
            for insertion in batch.insertions:
                try:
                    self._commit([insertion], [])
                except Exception as error:
                    insertion.error = error
            self._remove_later(removals)
        else:
            self._complained = False
        for insertion in batch.insertions:
            insertion.tell()
        for call, future in batch.calls:
            try:
                with self._writing, self._connection() as db:
                    future.set_result(call(db))
            except BaseException as error:
                future.set_exception(self._told(error))

    def _remove_later(self, removals: list[int]) -> None:
        if not removals:
            return
        try:
            self._commit([], removals)
        except Exception as error:
            self._overdue = removals
            if not self._complained:
                self._complained = True
                logger.error("journal %s: %d ended tasks stay in it for now: %s", self.path, len(removals), error)

    def _commit(self, insertions: list[Insertion], removals: list[int]) -> None:
        if not insertions and not removals:
            return
        rows = [row.values() for insertion in insertions for row in insertion.rows]
        with self._writing:
            db = self._connection()
            try:
                db.execute("BEGIN IMMEDIATE")
                if rows:
                    db.executemany(_INSERT, rows)
                if removals:
                    db.executemany("DELETE FROM tasks WHERE seq = ?", [(seq,) for seq in removals])
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def _connection(self) -> sqlite3.Connection:
        assert self._db is not None
        return self._db

    # --- opening and closing, on that thread too ---

    def _open(self) -> list[Row]:
        self._path_lock = PathLock(self.path)
        # Made by us: its files are nobody else's to read, and what is wrong with the folder is told with its errno.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600))
        db = self._db = sqlite3.connect(self.path, isolation_level=None, timeout=5.0)
        self._check(db)
        make_table(f"{self.path}-running")
        if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise JournalError(self.path, "this file system cannot have it (SQLite's WAL mode)")
        db.execute(f"PRAGMA synchronous = {'FULL' if self._fsync else 'NORMAL'}")
        db.execute("BEGIN IMMEDIATE")
        if not db.execute("PRAGMA application_id").fetchone()[0]:
            for statement in _CREATE:
                db.execute(statement)
        self._charge(db)
        db.execute("UPDATE life SET key = ?", (self.life,))
        db.execute("COMMIT")  # from here on the marks of the life before mean nothing: each is charged once
        self.marks.open()
        self._seq = db.execute("SELECT coalesce(max(seq), 0) FROM tasks").fetchone()[0]
        return [_row(values) for values in db.execute(_SELECT, (0,))]

    def _check(self, db: sqlite3.Connection) -> None:
        """Touch nothing that is not a journal of ours, whole and of a form that is known here."""
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION:
            if application or version or db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise JournalError(self.path, "it is a SQLite file of another program")
            return
        if version > SCHEMA:
            raise JournalError(
                self.path, f"it was written by a later version of taskback (form {version}; this one knows {SCHEMA})"
            )
        found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise JournalError(self.path, f"it is damaged ({found}); it was left as it is")

    def _charge(self, db: sqlite3.Connection) -> None:
        """Charge the tasks that were running when the life before ended; who has used up its budget is quarantined."""
        life = db.execute("SELECT key FROM life").fetchone()[0]
        if life is None:  # it has closed the journal itself
            return
        marks = Marks(f"{self.path}-running", life)
        marks.open()
        rows = db.execute("SELECT seq, id, type, crashes FROM tasks WHERE quarantined = 0 ORDER BY seq").fetchall()
        for seq, id_bytes, type_bytes, before in rows:
            task_id, task_type, crashes = _text(id_bytes), _text(type_bytes), before + 1
            if not marks.is_marked(task_id):
                continue
            budget = self._budget(task_type)
            spent = crashes >= budget
            db.execute("UPDATE tasks SET crashes = ?, quarantined = ? WHERE seq = ?", (crashes, spent, seq))
            if spent:
                logger.error(
                    "task %s of type %r was running at the end of %d lives of the program: it is quarantined",
                    *(task_id, task_type, crashes),
                )
            else:
                logger.warning(
                    "task %s of type %r was running when the program ended (%d of %d)",
                    *(task_id, task_type, crashes, budget),
                )

    def _close_file(self) -> None:
        db = self._connection()
        removals, self._overdue = self._overdue, []
        self._remove_later(removals)
        with self._writing:
            with suppress(sqlite3.Error):  # a full disk: then the marks are read, and say who really runs on
                db.execute("UPDATE life SET key = NULL")
                with suppress(OSError):
                    os.unlink(f"{self.path}-running")
            with suppress(sqlite3.Error):
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _end(self) -> None:
        self.marks.drop()
        with self._lock:
            self._closing = True
            batch, self._next = self._next, _Batch()
        for insertion in batch.insertions:  # none, unless this thread has failed
            insertion.error = JournalError(self.path, "it is closed")
            insertion.tell()
        for _, future in batch.calls:
            future.set_exception(JournalError(self.path, "it is closed"))
        if self._db is not None:
            with self._writing, suppress(sqlite3.Error):
                self._db.close()
            self._db = None
        if self._path_lock is not None:
            self._path_lock.release()

    def _told(self, error: BaseException) -> BaseException:
        """An error as callers get it."""
        if isinstance(error, JournalError) or not isinstance(error, (sqlite3.Error, OSError, OverflowError)):
            return error
        return self.error_of(error)

    def error_of(self, error: BaseException) -> JournalError:
        """What SQLite or the system says, with the path."""
        if isinstance(error, JournalError):
            return error
        if isinstance(error, sqlite3.DatabaseError) and getattr(error, "sqlite_errorcode", None) in _DAMAGED:
            told = JournalError(self.path, f"it is damaged, or no journal ({error}); it was left as it is")
        else:
            words = error.strerror if isinstance(error, OSError) else str(error)
            told = JournalError(self.path, words or type(error).__name__)
        told.__cause__ = error
        return told


_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _is_full(error: Exception | None) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _bytes(text: str | None) -> bytes | None:
    # No TEXT: a str may have halves of surrogate pairs, which SQLite refuses.
    return None if text is None else text.encode("utf-8", "surrogatepass")


def _text(data: Any) -> Any:
    return None if data is None else data.decode("utf-8", "surrogatepass")


def _row(values: tuple[Any, ...]) -> Row:
    seq, task_id, task_type, task, options, submitted_at, crashes = values
    return Row(seq, _text(task_id), _text(task_type), task, json.loads(options or "{}"), submitted_at, crashes)


def quarantined(db: sqlite3.Connection) -> list[Row]:
    """The rows that are kept and not run."""
    return [_row(values) for values in db.execute(_SELECT, (1,))]


def discard(task_id: str, db: sqlite3.Connection) -> bool:
    """Remove one of those; whether it was there."""
    return db.execute("DELETE FROM tasks WHERE quarantined = 1 AND id = ?", (_bytes(task_id),)).rowcount > 0


# --- forks ---

_journals: "weakref.WeakSet[Journal]" = weakref.WeakSet()
_held: list[Journal] = []
_hooked = False


def _hold_forks_back(journal: Journal) -> None:
    global _hooked
    _journals.add(journal)
    if not _hooked and hasattr(os, "register_at_fork"):
        _hooked = True
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)


def _before_fork() -> None:
    for journal in list(_journals):
        if threading.current_thread() is not journal._thread and journal._writing.acquire(timeout=FORK_PATIENCE):
            _held.append(journal)


def _after_fork() -> None:
    while _held:
        _held.pop()._writing.release()


def _in_child() -> None:
    _held.clear()
    for journal in list(_journals):
        if journal._db is not None:
            # The parent's connection must never be closed here, which would clear up after the parent.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(journal._db))
    _journals.clear()
