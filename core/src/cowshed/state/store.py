"""One store: a directory with a database, blobs, drivers' roots and locks, used by any number of processes at once.

The database is SQLite in WAL mode with synchronous=FULL. Readers take no lock and never wait; write transactions are
short, with nothing else inside. Only SQLite opens the database file: POSIX locks are lost when a process closes any
descriptor of it.
"""

from __future__ import annotations

import _sqlite3
import os

from cowshed.errors import Busy, NewerStore, NoSpace, StoreError
from cowshed.state.locks import Locks
from cowshed.state.schema import STEPS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

_FOLDERS = ("locks", "blobs", "blobs/sha256", "blobs/partial", "drivers", "containers", "volumes", "cache")
_BALLAST = 4 << 20
_WRITE_WAIT, _READ_WAIT = 10.0, 2.0
_FULL = ("full", "disk I/O error", "unable to open database file", "readonly database")


class Store:
    """An open store. Not to be carried across fork."""

    def __init__(self, root: str, run_root: str, db: Any, *, writable: bool, stale: bool = False) -> None:
        self.root, self._db, self.writable = root, db, writable
        self.stale = stale  # what is read is a copy made because the disk is full
        self.id: str = self.value("store")
        self.run = f"{run_root}/{self.id[:12]}"
        self.locks = Locks(f"{root}/locks")

    def value(self, key: str) -> Any:
        rows = self.query("select value from meta where key = ?", key)
        return rows[0][0] if rows else None

    def query(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(sql, parameters).fetchall()  # type: ignore[no-any-return]
        except _sqlite3.Error as error:
            raise _translated(error, self.root) from error

    def transaction(self) -> Transaction:
        """`with store.transaction() as tx:` everything or nothing, durable on return."""
        if not self.writable:
            raise StoreError(f"the store at {self.root} is open for reading only")
        return Transaction(self)

    def run_directory(self) -> str:
        """RUNROOT/ID, made if it is missing; gone after a reboot."""
        os.makedirs(self.run, mode=0o700, exist_ok=True)
        return self.run

    def close(self) -> None:
        self._db.close()
        self.locks.close()

    def release_ballast(self) -> None:
        """Give back the space kept for a full disk, so that a removal can be written down."""
        try:
            os.unlink(f"{self.root}/ballast")
        except FileNotFoundError:
            return

    def keep_ballast(self) -> None:
        make_ballast(self.root)


class Transaction:
    """BEGIN IMMEDIATE … COMMIT. Take no lock, call no driver, delete no file inside."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __enter__(self) -> Transaction:
        self.execute("begin immediate")
        return self

    def execute(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self.store.query(sql, *parameters)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self.execute("commit")
                return
            except BaseException:
                self._back()
                raise
        self._back()

    def _back(self) -> None:
        if self.store._db.in_transaction:
            self.execute("rollback")


def open_store(root: str, run_root: str, *, write: bool = True) -> Store:
    """Open the store at root, making it if there is none and write is true.

    Raises StoreError (cannot be used, why), NewerStore (made by a newer Cowshed), NoSpace, Busy.
    """
    path = f"{root}/db.sqlite"
    if not os.path.exists(path):
        if not write and not os.path.isdir(root):
            write = True
        _make(root)
    db = _connect(path, write=write)
    try:
        version = _version(db, root)
        if version > len(STEPS):
            raise NewerStore(
                f"the store at {root} has schema {version}; this Cowshed knows {len(STEPS)}",
                remedy="use a newer Cowshed",
            )
        if version < len(STEPS):
            _migrate(root, db)
        return Store(root, run_root, db, writable=write)
    except NoSpace:
        db.close()
        if write:
            raise
        return _copy(root, run_root)
    except BaseException:
        db.close()
        raise


def _connect(path: str, *, write: bool) -> Any:
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    try:
        db = _sqlite3.connect(
            f"file:{quoted}?mode={'rw' if write else 'ro'}",
            timeout=_WRITE_WAIT if write else _READ_WAIT,
            isolation_level=None,
            uri=True,
        )
        if write:
            db.execute("pragma synchronous = full")
            db.execute("pragma foreign_keys = on")
        return db
    except _sqlite3.Error as error:
        raise _translated(error, os.path.dirname(path)) from error


def _version(db: Any, root: str) -> int:
    try:
        return int(db.execute("pragma user_version").fetchone()[0])
    except _sqlite3.Error as error:
        raise _translated(error, root) from error


def _make(root: str) -> None:
    """Lay out an empty store. Two processes may do so at once: the lock lets one work and the other find it done."""
    from cowshed_linux import locks

    try:
        for folder in ("", *_FOLDERS):
            os.makedirs(f"{root}/{folder}", mode=0o700, exist_ok=True)
        fd = locks.open_file(f"{root}/locks/store")
    except OSError as error:
        raise StoreError(
            f"no store can be made at {root}: {error.strerror}", remedy="choose another place with --root"
        ) from None
    try:
        locks.lock_file(fd)
        if os.path.exists(f"{root}/db.sqlite"):
            return
        new = f"{root}/db.new.{os.getpid()}"
        db = _sqlite3.connect(new, isolation_level=None)
        try:
            db.execute("pragma journal_mode = wal")
            db.execute("begin immediate")
            _apply_steps(db, 0)
            db.execute("insert into meta values ('store', ?), ('next', 1)", (os.urandom(16).hex(),))
            db.execute("commit")
        except _sqlite3.Error as error:
            raise _translated(error, root) from error
        finally:
            db.close()
        from cowshed_linux import files

        os.rename(new, f"{root}/db.sqlite")
        files.sync_directory(root)
        make_ballast(root)
    finally:
        os.close(fd)


def _apply_steps(db: Any, version: int) -> None:
    for step in STEPS[version:]:
        for statement in step.split(";\n"):
            if statement.strip():
                db.execute(statement)
    db.execute(f"pragma user_version = {len(STEPS)}")


def _migrate(root: str, db: Any) -> None:
    """Bring an older database to this version, alone: the store lock is taken exclusively."""
    from cowshed_linux import locks

    fd = locks.open_file(f"{root}/locks/store")
    try:
        if not locks.lock_file(fd, wait=False):
            raise Busy(
                f"the store at {root} needs a migration while other commands run", remedy="try again when they end"
            )
        db.execute("begin immediate")
        _apply_steps(db, _version(db, root))
        db.execute("commit")
    except _sqlite3.Error as error:
        raise _translated(error, root) from error
    finally:
        os.close(fd)


def _copy(root: str, run_root: str) -> Store:
    """On a full disk even reading fails: SQLite wants to write its shared memory file. A copy elsewhere can be read."""
    target = f"{run_root}/full"
    os.makedirs(target, mode=0o700, exist_ok=True)
    for name in ("db.sqlite", "db.sqlite-wal"):
        try:
            with open(f"{root}/{name}", "rb") as source, open(f"{target}/{name}", "wb") as copy:
                copy.write(source.read())
        except FileNotFoundError:
            continue
    return Store(root, run_root, _connect(f"{target}/db.sqlite", write=True), writable=False, stale=True)


def make_ballast(root: str) -> None:
    """Keep a few MiB that a full disk can give back. Without room for it there is none, and that is no error."""
    path = f"{root}/ballast"
    if os.path.exists(path):
        return
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _BALLAST)
        finally:
            os.close(fd)
    except OSError:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return


def _translated(error: Exception, root: str) -> StoreError | NoSpace | Busy:
    text = str(error)
    if "locked" in text or "busy" in text:
        return Busy(f"the store at {root} is busy: {text}", remedy="try again")
    if any(sign in text for sign in _FULL):
        status = os.statvfs(root)
        if status.f_bavail * status.f_frsize < 1 << 20 or "full" in text:
            return NoSpace(f"the disk that holds the store at {root} is full", remedy="cowshed rm, rmi, or free space")
    return StoreError(f"the store at {root} cannot be read: {text}", remedy="cowshed system check")
