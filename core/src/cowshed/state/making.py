"""What is seldom done to a store: made, migrated, read from a copy on a full disk."""

from __future__ import annotations

import errno
import os
from time import monotonic, sleep

from cowshed.errors import Busy, StoreError
from cowshed.state import sqlite
from cowshed.state.locks import FILES, Locks
from cowshed.state.schema import STEPS
from cowshed.state.store import BALLAST, Store, connect, translated, version_of
from cowshed_linux import files, locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FOLDERS = ("locks", "blobs", "blobs/sha256", "blobs/partial", "drivers", "containers", "volumes", "cache", "records")
_MIGRATION_WAIT = 10.0  # seconds for other commands to end
_LATE, _PAUSE = 15.0, 0.1  # seconds in which a file system has given back what was deleted; between two looks
# Their locks do not reach other machines, or their shared memory does not: WAL needs both (sqlite.org/wal.html).
_NETWORK = frozenset(("nfs", "nfs4", "cifs", "smb3", "9p", "afs", "ceph", "fuse.sshfs", "fuse.glusterfs", "gfs2"))


def make(root: str) -> None:
    """Lay out an empty store. Two processes may do so at once: the lock lets one work and the other find it done.

    StoreError if the place cannot hold one, or holds the remains of one whose database is gone.
    """
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
        _check_place(root)
        for name in FILES:
            os.close(locks.open_file(f"{root}/locks/{name}"))
        _write_database(root)
        make_ballast(root)
    except OSError as error:
        raise StoreError(f"no store can be made at {root}: {error.strerror}", remedy="free space on it") from None
    finally:
        os.close(fd)


def _check_place(root: str) -> None:
    for folder in ("drivers", "containers", "blobs/sha256"):
        if os.listdir(f"{root}/{folder}"):
            raise StoreError(
                f"{root} has {folder} but no database: it is what is left of a store",
                remedy="restore db.sqlite, or choose another place with --root",
            )
    kind = _file_system(root)
    if kind in _NETWORK:
        raise StoreError(f"{root} lies on {kind}; a store needs a local file system", remedy="choose another --root")
    one, two = (locks.open_file(f"{root}/locks/leases") for _ in range(2))
    try:
        if not locks.lock_byte(one, 1, wait=False) or not locks.byte_is_locked(two, 1):
            raise StoreError(f"byte locks do not work on {kind} at {root}", remedy="choose another --root")
        if not locks.lock_file(one, wait=False) or locks.lock_file(two, wait=False):
            raise StoreError(f"flock does not work on {kind} at {root}", remedy="choose another --root")
    except OSError as error:
        raise StoreError(f"{root}: no locks on {kind}: {error.strerror}", remedy="choose another --root") from None
    finally:
        os.close(one)
        os.close(two)


def _file_system(path: str) -> str:
    """The type of the file system at path as mountinfo names it (proc_pid_mountinfo(5)), "" if it is not found."""
    number = os.stat(path).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            before, _, after = line.partition(" - ")
            if before.split()[2] == device:
                return after.split()[0]
    return ""


def make_places(root: str, folders: tuple[str, ...] = _FOLDERS) -> None:
    """The directories of a store and its lock files, where they are missing."""
    for folder in ("locks", *folders):
        os.makedirs(f"{root}/{folder}", mode=0o700, exist_ok=True)
    for name in FILES:
        os.close(locks.open_file(f"{root}/locks/{name}"))


def make_again(root: str, run_root: str, identity: str, *, beside: str = "") -> Store:
    """A new, empty database of that identity for what lies at root, open for writing; the caller has put the old one
    away, and fills this one.

    beside: the directory that it is made in instead, where the store is not to be written to, records and all.

    StoreError, NoSpace.
    """
    where = beside or root
    make_places(where, () if beside else _FOLDERS)
    _write_database(where, identity)
    store = Store(root, run_root, connect(f"{where}/db.sqlite", write=True), writable=True)
    if beside:
        store.recording = False
        store.locks = Locks(f"{beside}/locks")
    return store


def read_copy(root: str, run_root: str) -> Store:
    """The store by a copy of its database, for reading: nothing at root is written to. StoreError."""
    if not os.path.exists(f"{root}/db.sqlite"):
        raise StoreError(f"the store at {root} has no database")
    db = copy_of(root, run_root)
    try:
        if version_of(db, root) != len(STEPS):
            raise StoreError(f"the database of {root} is of another version of Cowshed", remedy="use that")
        return Store(root, run_root, db, writable=False, stale=True)
    except BaseException:
        db.close()
        raise


def _write_database(root: str, identity: str = "") -> None:
    new = f"{root}/db.new"  # alone here: the lock is held
    for suffix in ("", "-wal", "-shm"):
        try:
            os.unlink(new + suffix)
        except FileNotFoundError:
            continue
    try:
        db = sqlite.connect(new, isolation_level=None)
        try:
            db.execute("pragma journal_mode = wal")
            db.execute("pragma synchronous = full")
            db.execute("begin immediate")
            _apply_steps(db, 0)
            db.execute("insert into meta values ('store', ?), ('next', 1)", (identity or os.urandom(16).hex(),))
            db.execute("commit")
        finally:
            db.close()
    except sqlite.Error as error:
        raise translated(error, root) from error
    os.rename(new, f"{root}/db.sqlite")
    files.sync_directory(root)


def _apply_steps(db: Any, version: int) -> None:
    for step in STEPS[version:]:
        for statement in step.split(";\n"):
            if statement.strip():
                db.execute(statement)
    db.execute(f"pragma user_version = {len(STEPS)}")


def migrate(root: str) -> None:
    """Bring an older database to this version, alone: the `store` lock is taken exclusively. What was before is kept
    beside it as before-N.sqlite. Busy if other commands that may write go on for longer than ten seconds."""
    from time import monotonic, sleep

    fd = locks.open_file(f"{root}/locks/store")
    try:
        until = monotonic() + _MIGRATION_WAIT
        while not locks.lock_file(fd, wait=False):
            if monotonic() > until:
                raise Busy(
                    f"the store at {root} needs a migration while other commands run", remedy="try again when they end"
                )
            sleep(0.01)
        for name in FILES:
            os.close(locks.open_file(f"{root}/locks/{name}"))
        db = connect(f"{root}/db.sqlite", write=True)
        try:
            version = version_of(db, root)
            if version >= len(STEPS):
                return  # another did it meanwhile
            backup = f"{root}/before-{version}.sqlite"
            if not os.path.exists(backup):
                db.execute("vacuum into ?", (backup,))
            db.execute("begin immediate")
            _apply_steps(db, version)
            db.execute("commit")
        except sqlite.Error as error:
            raise translated(error, root) from error
        finally:
            db.close()  # rolls back what is not committed
    finally:
        os.close(fd)


def copy_of(root: str, run_root: str) -> Any:
    """A connection to a copy of the database. On a full disk even reading fails: SQLite needs a file of shared memory
    beside the database. The copy is gone when the connection is closed."""
    target = f"{run_root}/stale.{os.getpid()}"
    try:
        os.makedirs(target, mode=0o700, exist_ok=True)
        for name in ("db.sqlite", "db.sqlite-wal"):
            try:
                # No connection of this process is open: closing a descriptor of the file drops nobody's locks.
                with open(f"{root}/{name}", "rb") as source, open(f"{target}/{name}", "wb") as copy:
                    while block := source.read(1 << 20):
                        copy.write(block)
            except FileNotFoundError:
                continue
        db = connect(f"{target}/db.sqlite", write=True)
        db.execute("select count(*) from meta").fetchall()
        return db
    except sqlite.Error as error:
        raise translated(error, root) from error
    except OSError as error:
        raise StoreError(
            f"the disk of {root} is full, and its database cannot be copied to {run_root}: {error.strerror}",
            remedy="free space",
        ) from None
    finally:
        for name in ("db.sqlite", "db.sqlite-wal", "db.sqlite-shm"):
            try:
                os.unlink(f"{target}/{name}")
            except FileNotFoundError:
                continue
        try:
            os.rmdir(target)
        except OSError:
            pass  # a file that SQLite made meanwhile; the run directory does not outlive the boot


def make_ballast(root: str) -> None:
    """Keep a few MiB that a full disk can give back. Without room for it there is none, and that is no error."""
    path = f"{root}/ballast"
    if os.path.exists(path):
        return
    status = os.statvfs(root)
    if status.f_bavail * status.f_frsize < 4 * BALLAST:
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, BALLAST)
        if os.fstat(fd).st_blocks * 512 < BALLAST:  # ZFS says that it has done it, and keeps a hole
            _write(fd, os.urandom(BALLAST))
    except OSError:
        os.unlink(path)
    finally:
        os.close(fd)


def give_ballast(root: str) -> bool:
    """Give the ballast back to a full disk; whether there was one. Returns when the space can be used, which on ZFS is
    with the next groups of transactions, or some seconds later without it: others may have taken it."""
    try:
        os.unlink(f"{root}/ballast")
    except FileNotFoundError:
        return False
    until = monotonic() + _LATE
    while not _has_room(root) and monotonic() < until:
        sleep(_PAUSE)
    return True


def _has_room(root: str) -> bool:
    try:
        fd = os.open(root, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)  # a file system without such files is not asked
    try:
        _write(fd, os.urandom(BALLAST // 8))
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False
    finally:
        os.close(fd)
    return True


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
