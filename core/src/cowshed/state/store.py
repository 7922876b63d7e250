"""One store: a directory with a database, blobs, drivers' roots and locks, used by any number of processes at once.

The database is SQLite in WAL mode with synchronous=FULL. Readers take no lock and never wait; write transactions are
short, with nothing else inside. Only SQLite opens the database file: POSIX locks are lost when a process closes any
descriptor of it.

A command that may write holds the `store` lock shared, so that a migration waits for it, and lets it go while it only
relays or waits (`relax`). The next transaction takes it again, and notices if the schema was changed meanwhile.
"""

from __future__ import annotations

import os

from cowshed.errors import Busy, NewerStore, NoSpace, StoreError
from cowshed.state import sqlite
from cowshed.state.locks import Locks
from cowshed.state.schema import STEPS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    from cowshed.layers.layers import Layers

UNRECORDED = "unrecorded-"  # and the number of the process
BALLAST = 4 << 20  # bytes
_WRITE_WAIT, _READ_WAIT = 10.0, 2.0  # seconds
_LOG = 200  # pages of SQLite's log before it is written back: whoever opens a store alone reads it all, 3 µs a page


class Store:
    """An open store. For one thread, and not to be carried across fork."""

    def __init__(
        self, root: str, run_root: str, db: Any, *, writable: bool, freeing: bool = False, stale: bool = False
    ) -> None:
        self.root, self._db, self.writable = root, db, writable
        self.freeing = freeing  # may use the space kept for removals
        self.stale = stale  # what is read is a copy, made because the disk is full
        self.recording = True  # records follow what is written
        self.layers_of: Callable[[str], Layers] | None = None  # the layers of a driver, as this command has opened it
        self.ignores_trailing = False  # what lies behind the gzip data of a layer (`cowshed.layers.unpack`)
        self.drops_archives = False  # once a layer is in a driver (`cowshed.image.archives`)
        self._shared = False
        self.locks = Locks(f"{root}/locks")
        self.id: str = self.value("store")
        self.run = f"{run_root}/{self.id[:12]}"

    def value(self, key: str) -> Any:
        """What `meta` keeps under key, None if nothing."""
        rows = self.query("select value from meta where key = ?", key)
        return rows[0][0] if rows else None

    def query(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """All rows. Raises StoreError, NoSpace, Busy."""
        try:
            return self._db.execute(sql, parameters).fetchall()  # type: ignore[no-any-return]
        except sqlite.Error as error:
            raise translated(error, self.root) from error

    def transaction(self) -> Transaction:
        """`with store.transaction() as tx:` everything or nothing, durable on return. StoreError, NoSpace, Busy."""
        if not self.writable:
            raise StoreError(f"the store at {self.root} is open for reading only")
        return Transaction(self)

    def hold(self) -> None:
        """Take the `store` lock shared, if it is not held: nobody changes the schema from now on. Busy, NewerStore."""
        if self._shared:
            return
        if not self.locks.share("store", wait=_WRITE_WAIT):
            raise Busy(f"the store at {self.root} is being migrated by another command", remedy="try again")
        self._shared = True
        if int(self.query("pragma user_version")[0][0]) != len(STEPS):
            self.relax()
            raise NewerStore(f"the store at {self.root} was migrated by a newer Cowshed meanwhile", remedy="use that")

    def relax(self) -> None:
        """Let the `store` lock go, for a long wait in which nothing is written; `transaction` takes it again."""
        if self._shared:
            self._shared = False
            self.locks.let_go("store")

    def run_directory(self) -> str:
        """RUNROOT/ID, made if it is missing; gone after a reboot."""
        os.makedirs(self.run, mode=0o700, exist_ok=True)
        return self.run

    def unrecorded(self) -> list[str]:
        """Names of the notes in the run directory of records that may be old (`cowshed.state.records`)."""
        try:
            return [name for name in os.listdir(self.run) if name.startswith(UNRECORDED)]
        except FileNotFoundError:
            return []

    def noted_numbers(self) -> tuple[int, int]:
        """How many layer numbers were ever given away, and the one to give next, as they are noted beside the database:
        a database that says less was restored from a copy, and would give away again what is on the disk."""
        try:
            fd = os.open(f"{self.root}/numbers", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0, 0
        try:
            given, beyond = os.read(fd, 64).split()
            return int(given), int(beyond)
        except ValueError:
            return 0, 0  # cut by a power cut; the database has what counts
        finally:
            os.close(fd)

    def _note_numbers(self, given: int, beyond: int) -> None:
        try:
            fd = os.open(f"{self.root}/numbers", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(fd, b"%-15d %-15d\n" % (given, beyond), 0)  # in place: only the first time it takes space
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno not in (28, 122):  # ENOSPC, EDQUOT: what is committed stays, the next one notes it
                raise

    def close(self) -> None:
        """Give everything back; with freeing, keep a ballast again where there is room for it."""
        self._db.close()
        self.locks.close()
        self.keep_ballast()

    def keep_ballast(self) -> None:
        """After freeing space: have a ballast again, if there is room for it."""
        if self.freeing and not os.path.exists(f"{self.root}/ballast"):
            from cowshed.state import making

            making.make_ballast(self.root)

    def make_room(self) -> None:
        """On a full disk, give the ballast back to the file system, so that a removal can be written down."""
        status = os.statvfs(self.root)
        if status.f_bavail * status.f_frsize < BALLAST and os.path.exists(f"{self.root}/ballast"):
            from cowshed.state import making

            making.give_ballast(self.root)


class Transaction:
    """BEGIN IMMEDIATE … COMMIT. Take no lock, call no driver, delete no file inside.

    The one exception: bytes of a number that this transaction makes (`take_new`). They are free by construction.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._new: list[tuple[str, int]] = []
        self._noted: tuple[int, int] | None = None
        self._recorded: set[tuple[str, str]] = set()

    def note_numbers(self, given: int, beyond: int) -> None:
        """What `Store.noted_numbers` tells once this transaction is durable."""
        self._noted = given, beyond

    def record(self, kind: str, name: str) -> None:
        """This row is changed: its record (`cowshed.state.records`) follows when this transaction is durable."""
        self._recorded.add((kind, name))

    def __enter__(self) -> Transaction:
        self.store.hold()
        if self.store.freeing:
            self.store.make_room()
        self.execute("begin immediate")
        return self

    def execute(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self.store.query(sql, *parameters)

    def take_new(self, names: tuple[str, ...], number: int) -> bool:
        """Take the bytes of a number that this transaction makes, to be kept after it. If it fails they are free again
        before anybody else can be given the number. False if one is held: by a command that is just dying."""
        for name in names:
            if not self.store.locks.try_take(name, number):
                self._free(number)
                return False
            self._new.append((name, number))
        return True

    def _free(self, number: int | None = None) -> None:
        for name, byte in list(self._new):
            if number is None or byte == number:
                self.store.locks.release(name, byte)
                self._new.remove((name, byte))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            note = ""
            try:
                note = self._announce()
                self.execute("commit")
                if self._noted is not None:
                    self.store._note_numbers(*self._noted)
            except BaseException:
                self._back()
                self._refresh(note)
                raise
            self._refresh(note)
            return
        self._back()

    def _announce(self) -> str:
        if not (self._recorded and self.store.recording):
            return ""
        from cowshed.state import records

        return records.announce(self.store, self._recorded)

    def _refresh(self, note: str) -> None:
        if note:
            from cowshed.state import records

            records.refresh(self.store, self._recorded, note)

    def _back(self) -> None:
        self._free()
        if self.store._db.in_transaction:
            self.execute("rollback")


def open_store(root: str, run_root: str, *, write: bool = True, freeing: bool = False) -> Store:
    """Open the store at root; if nothing is there, make one. The root may have been moved since it was made.

    freeing is for commands that give space back: on a full disk they may use the ballast. A reader on a full disk gets
    a copy of the database, marked `stale`.

    Raises StoreError (cannot be used, why), NewerStore (made by a newer Cowshed), NoSpace, Busy.
    """
    path = f"{root}/db.sqlite"
    if not os.path.exists(path):
        from cowshed.state import making

        making.make(root)
    db = None
    try:
        db = _ready(path, root, write=write, freeing=freeing)
        store = Store(root, run_root, db, writable=write, freeing=freeing)
        if write:
            store.hold()
        return store
    except NoSpace:
        if db is not None:
            db.close()
        if write:
            raise
        from cowshed.state import making

        return Store(root, run_root, making.copy_of(root, run_root), writable=False, stale=True)
    except BaseException:
        if db is not None:
            db.close()
        raise


def _ready(path: str, root: str, *, write: bool, freeing: bool) -> Any:
    """A connection to a database of this version."""
    db = _opened(path, root, write=write, freeing=freeing)
    try:
        version = version_of(db, root)
        if version < len(STEPS):
            db.close()
            from cowshed.state import making

            making.migrate(root)
            return _opened(path, root, write=write, freeing=freeing)
        if version > len(STEPS):
            raise NewerStore(
                f"the store at {root} has schema {version}; this Cowshed knows {len(STEPS)}",
                remedy="use a newer Cowshed",
            )
        return db
    except BaseException:
        db.close()
        raise


def _opened(path: str, root: str, *, write: bool, freeing: bool) -> Any:
    try:
        return connect(path, write=write)
    except NoSpace:
        if not freeing:
            raise
    # Even the connection needs a file beside the database: the ballast makes room for it.
    from cowshed.state import making

    if not making.give_ballast(root):
        raise NoSpace(f"the disk that holds the store at {root} is full", remedy="free space on it")
    return connect(path, write=write)


def connect(path: str, *, write: bool) -> Any:
    """A connection that has proved to be usable by reading the schema's version."""
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    root = os.path.dirname(path)
    db = None
    try:
        db = sqlite.connect(
            f"file:{quoted}?mode={'rw' if write else 'ro'}",
            timeout=_WRITE_WAIT if write else _READ_WAIT,
            isolation_level=None,
            uri=True,
        )
        if write:
            db.execute("pragma synchronous = full")
            db.execute(f"pragma wal_autocheckpoint = {_LOG}")
            db.execute("pragma foreign_keys = on")
        version_of(db, root)
        return db
    except sqlite.Error as error:
        if db is not None:
            db.close()
        raise translated(error, root) from error
    except BaseException:
        if db is not None:
            db.close()
        raise


def version_of(db: Any, root: str) -> int:
    """How many steps of the schema a database has had."""
    try:
        return int(db.execute("pragma user_version").fetchone()[0])
    except sqlite.Error as error:
        raise translated(error, root) from error


def translated(error: Exception, root: str) -> StoreError | NoSpace | Busy:
    """What an error of SQLite means for the store at root."""
    name = str(getattr(error, "sqlite_errorname", ""))
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Busy(f"the store at {root} is busy: {error}", remedy="try again")
    if name == "SQLITE_FULL" or (
        name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY")) and _full(root)
    ):
        return NoSpace(f"the disk that holds the store at {root} is full", remedy="cowshed rm, rmi, or free space")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StoreError(f"the database of the store at {root} is damaged: {error}", remedy="restore db.sqlite")
    return StoreError(f"the store at {root} cannot be used: {error}", remedy="cowshed system check")


def _full(root: str) -> bool:
    """Whether the disk lacks room for even the small file that SQLite shares among connections."""
    try:
        status = os.statvfs(root)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize < 1 << 20 or (status.f_files > 0 and status.f_favail == 0)
