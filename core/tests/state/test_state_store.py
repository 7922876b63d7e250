"""Opening, making, moving, migrating a store; several processes; a full disk."""

import _sqlite3
import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cowshed.errors import Busy, Conflict, NewerStore, StoreError
from cowshed.state import containers, images, leases, volumes
from cowshed.state import layers as rows
from cowshed.state import making as making_
from cowshed.state.rows import ContainerRow, ImageRow, VolumeRow
from cowshed.state.schema import STEPS
from cowshed.state.store import BALLAST, open_store


@pytest.fixture
def store(tmp_path):
    it = open_store(str(tmp_path / "root"), str(tmp_path / "run"))
    yield it
    it.close()


def again(store, **how):
    return open_store(store.root, os.path.dirname(store.run), **how)


def run(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def container(number, name="one", ident=None):
    return ContainerRow(number, ident or f"{number:064x}", name, None, "img", "overlay", "created", number, {"a": 1})


def test_identity_lives_in_the_store_and_moves_with_it(store, tmp_path):
    identity = store.id
    store.close()
    os.rename(tmp_path / "root", tmp_path / "elsewhere")
    moved = open_store(str(tmp_path / "elsewhere"), str(tmp_path / "run"), write=False)
    assert moved.id == identity
    assert moved.run == f"{tmp_path}/run/{identity[:12]}"
    moved.close()
    store.locks = moved.locks


def test_a_name_with_every_special_letter_of_a_uri(tmp_path):
    it = open_store(str(tmp_path / "a?b#c%41 d"), str(tmp_path / "run"))
    assert os.path.exists(tmp_path / "a?b#c%41 d" / "db.sqlite")
    it.close()


def test_a_newer_schema_is_refused_and_left_alone(store):
    store.query(f"pragma user_version = {len(STEPS) + 1}")
    for write in (True, False):
        with pytest.raises(NewerStore, match=f"schema {len(STEPS) + 1}"):
            again(store, write=write)
    assert store.query("pragma user_version") == [(len(STEPS) + 1,)]


def older(root, version=1):
    """A store as an earlier version of the schema left it: an image of two layers, one of them shared with a second
    image, a container with a volume, and a layer that nothing stands on."""
    open_store(root, root + ".run").close()
    os.unlink(root + "/db.sqlite")
    db = _sqlite3.connect(root + "/db.sqlite", isolation_level=None)
    db.execute("pragma journal_mode = wal")
    for step in STEPS[:version]:
        for statement in step.split(";\n"):
            if statement.strip():
                db.execute(statement)
    db.execute(f"pragma user_version = {version}")
    db.execute("insert into meta values ('store', 'abcdefabcdefabcdef'), ('next', 7)")
    db.execute("insert into drivers values ('overlay', 's', '{}', '{}')")
    for number, chain, parent in ((1, "sha256:a", None), (2, "sha256:b", 1), (3, "sha256:gone", None)):
        db.execute(
            "insert into layers values (?, ?, 'overlay', 'committed', ?, ?, ?, '{}', 1, '', 0)",
            (number, f"{number:032x}", parent, chain, chain),
        )
    for id_, blobs, chains in (("i1", '[["b1","t",1],["b2","t",2]]', ("sha256:a", "sha256:b")),
                               ("i2", '[["b1","t",1]]', ("sha256:a",))):  # fmt: skip
        db.execute(
            "insert into images values (?, 'd', '{}', 't', '{}', '[]', ?, ?, 'p', 3, 0, 0)", (id_, chains[-1], blobs)
        )
        for chain in chains:
            db.execute("insert into chains values (?, ?)", (id_, chain))
    db.execute("insert into volumes values ('v', 0, 1, '{}')")
    db.execute(
        "insert into containers (number, id, name, image_id, image_ref, driver, state, created, config) "
        "values (9, 'c', 'one', 'i1', 'r', 'overlay', 'exited', 0, '{}')"
    )
    db.execute("insert into volume_users values ('v', 9)")
    db.close()


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("version", range(1, len(STEPS)))
def test_an_older_store_is_migrated_and_kept_beside(tmp_path, write, version):
    root = str(tmp_path / "root")
    older(root, version)
    it = open_store(root, str(tmp_path / "run"), write=write)
    assert it.query("pragma user_version") == [(len(STEPS),)]
    assert (it.id, it.value("next")) == ("abcdefabcdefabcdef", 7)
    assert it.query("select count(*) from leases") == [(0,)]
    assert it.query("pragma foreign_key_check") == []
    it.close()
    kept = _sqlite3.connect(f"{root}/before-{version}.sqlite")
    assert kept.execute("pragma user_version").fetchone() == (version,)
    kept.close()


@pytest.mark.parametrize("version", [1, 2])  # before the third, nobody kept account
def test_a_migrated_store_accounts_for_what_is_loose(tmp_path, version):
    root = str(tmp_path / "root")
    older(root, version)
    it = open_store(root, str(tmp_path / "run"))
    with it.transaction() as tx:
        assert [n for n in rows.loose(it, "overlay") if rows.is_loose(tx, n)] == [3]
    assert rows.loose(it, "overlay") == [3]
    with it.transaction() as tx:
        containers.delete(tx, 9)
        images.delete(tx, "i1")
    assert rows.loose(it, "overlay") == [3, 2]
    assert it.query("select digest from loose_blobs") == [("b1",), ("b2",)]
    assert images.unused_blobs(it, ["b1", "b2"]) == ["b2"]
    it.close()


def test_a_migration_waits_for_commands_that_write(tmp_path, monkeypatch):
    root = str(tmp_path / "root")
    older(root)
    monkeypatch.setattr(making_, "_MIGRATION_WAIT", 0.1)
    from cowshed_linux import locks

    fd = locks.open_file(f"{root}/locks/store")
    locks.lock_file(fd, shared=True)
    with pytest.raises(Busy, match="migration"):
        open_store(root, str(tmp_path / "run"))
    os.close(fd)
    open_store(root, str(tmp_path / "run")).close()


def test_a_command_that_relaxed_sees_that_the_schema_changed(store):
    store.relax()
    store.query(f"pragma user_version = {len(STEPS) + 1}")
    with pytest.raises(NewerStore), store.transaction():
        pass


def test_a_network_file_system_is_refused_by_its_name_a_stand_in(tmp_path, monkeypatch):
    """No network file system is here: its name stands in for one."""
    monkeypatch.setattr(making_, "_file_system", lambda path: "nfs4")
    with pytest.raises(StoreError, match="lies on nfs4") as told:
        open_store(str(tmp_path / "root"), str(tmp_path / "run"))
    assert told.value.remedy
    assert not os.path.exists(tmp_path / "root" / "db.sqlite")


def test_a_place_where_locks_do_not_work_is_refused_a_stand_in(tmp_path, monkeypatch):
    """As on a network file system that nobody listed: what is tried counts more than names."""
    from cowshed_linux import locks

    monkeypatch.setattr(locks, "byte_is_locked", lambda fd, byte: False)
    with pytest.raises(StoreError, match="byte locks do not work"):
        open_store(str(tmp_path / "root"), str(tmp_path / "run"))


def test_the_remains_of_a_store_are_no_new_store(store):
    store.close()
    os.makedirs(f"{store.root}/drivers/overlay")
    for name in os.listdir(store.root):
        if name.startswith("db.sqlite"):
            os.unlink(f"{store.root}/{name}")
    with pytest.raises(StoreError, match="no database"):
        open_store(store.root, store.run)
    store.locks = type(store.locks)(f"{store.root}/locks")


def test_a_damaged_database_is_said_to_be_damaged(store):
    store.close()
    Path(store.root, "db.sqlite").write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(StoreError, match="damaged"):
        open_store(store.root, store.run)


def test_a_reader_writes_nothing_and_a_failed_transaction_leaves_nothing(store):
    reader = again(store, write=False)
    with pytest.raises(StoreError, match="reading only"):
        reader.transaction()

    def half_done():
        with store.transaction() as tx:
            tx.execute("update meta set value = 99 where key = 'next'")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half_done()
    assert reader.value("next") == 1
    reader.close()


def test_six_processes_make_one_store(tmp_path):
    code = """
        import sys
        from cowshed.state.store import BALLAST, open_store
        store = open_store(sys.argv[1], sys.argv[1] + ".run")
        with store.transaction() as tx:
            tx.execute("update meta set value = value + 1 where key = 'next'")
        print(store.id)
    """
    processes = [run(code, str(tmp_path / "root")) for _ in range(6)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert len({out for out, _ in answers}) == 1, answers
    it = open_store(str(tmp_path / "root"), str(tmp_path / "run"))
    assert it.value("next") == 7
    it.close()


def test_readers_never_wait_for_a_writer(store):
    code = """
        import sys
        from cowshed.state.store import BALLAST, open_store
        for _ in range(200):
            store = open_store(sys.argv[1], sys.argv[1] + ".run", write=False)
            assert store.value("next") >= 1
            store.close()
    """
    readers = [run(code, store.root) for _ in range(3)]
    while any(reader.poll() is None for reader in readers):
        with store.transaction() as tx:
            tx.execute("update meta set value = value + 1 where key = 'next'")
    for reader in readers:
        _, errors = reader.communicate()
        assert reader.returncode == 0, errors.decode()


def test_a_killed_writer_leaves_no_half_transaction(store):
    code = """
        import os, sys
        from cowshed.state.store import BALLAST, open_store
        store = open_store(sys.argv[1], sys.argv[1] + ".run")
        with store.transaction() as tx:
            tx.execute("update meta set value = 4711 where key = 'next'")
            store.locks.take("layers", 3)
            print("inside", flush=True)
            os.read(0, 1)
    """
    victim = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), store.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert victim.stdout.readline() == b"inside\n"
    assert store.locks.held("layers", 3)
    assert not store.locks.try_take("layers", 3)
    victim.kill()
    victim.communicate()
    assert store.value("next") == 1
    store.locks.take("layers", 3)
    with store.transaction() as tx:
        tx.execute("update meta set value = 2 where key = 'next'")


def test_s7_a_full_disk_is_read_from_a_copy_and_removed_from_with_the_ballast(tmp_path):
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", sys.executable, str(Path(__file__).parent / "full_disk.py"),
         str(tmp_path)],
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr.decode())
    assert b"sound" in done.stdout


def test_a_ballast_has_its_blocks_where_the_file_system_reserves_none(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", lambda fd, _, size: os.ftruncate(fd, size))  # as ZFS does it
    making_.make_ballast(str(tmp_path))
    status = os.stat(tmp_path / "ballast")
    assert (status.st_size, status.st_blocks * 512 >= BALLAST) == (BALLAST, True)


@pytest.mark.parametrize("late", [0, 3])
def test_the_ballast_is_given_back_when_its_space_can_be_used(tmp_path, monkeypatch, late):
    """As on ZFS, where what was deleted is full for some seconds more."""
    looks, fsync = [], os.fsync

    def full(fd):
        looks.append(fd)
        if len(looks) <= late:
            raise OSError(errno.ENOSPC, "full")
        fsync(fd)

    monkeypatch.setattr(making_, "_PAUSE", 0)
    monkeypatch.setattr(os, "fsync", full)
    making_.make_ballast(str(tmp_path))
    assert making_.give_ballast(str(tmp_path))
    assert len(looks) == late + 1
    assert os.listdir(tmp_path) == []
    assert not making_.give_ballast(str(tmp_path)), "there is none any more"


def test_space_that_others_take_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(making_, "_LATE", 0)
    monkeypatch.setattr(making_, "_has_room", lambda _: False)
    making_.make_ballast(str(tmp_path))
    assert making_.give_ballast(str(tmp_path))


def test_listing_imports_little(store):
    code = """
        import sys
        import _sqlite3  # brings functools and collections itself
        before = set(sys.modules)
        from cowshed.state import containers
        from cowshed.state.store import BALLAST, open_store
        containers.list_all(open_store(sys.argv[1], sys.argv[1] + ".run", write=False))
        print(*sorted(set(sys.modules) - before))
    """
    out = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n" + textwrap.dedent(code),
         store.root],
        capture_output=True, check=True,
    ).stdout.decode().split()  # fmt: skip
    banned = {
        "sqlite3", "json", "re", "dataclasses", "typing", "enum", "pathlib", "shutil", "contextlib", "socket",
        "subprocess", "threading", "logging", "hashlib", "cowshed.state.making",
    }  # fmt: skip
    assert not banned & set(out)
    assert len(out) <= 25, out


def test_the_log_that_a_command_has_to_read_stays_short(store):
    for n in range(400):
        with store.transaction() as tx:
            tx.execute("insert or replace into meta values ('test', ?)", n)
    assert os.stat(f"{store.root}/db.sqlite-wal").st_size < 220 * (4096 + 24)


# ---------------------------------------------------------------- rows


def test_containers_by_name_and_prefix(store):
    with store.transaction() as tx:
        containers.insert(tx, container(1, "one", "ab" + "0" * 62))
        containers.insert(tx, container(2, "abc", "ac" + "0" * 62))
        containers.update(tx, 1, state="exited", exit_code=3, labels={"k": "v"})
    assert containers.find(store, "one").exit_code == 3
    assert containers.find(store, "ab").labels == {"k": "v"}
    assert containers.find(store, "abc").number == 2
    with pytest.raises(Exception, match="2 containers"):
        containers.find(store, "a")
    with pytest.raises(Conflict, match="in use"), store.transaction() as tx:
        containers.insert(tx, container(3, "one"))
    assert [row.name for row in containers.list_all(store)] == ["abc", "one"]


def test_s6_a_number_comes_again_last_and_never_while_it_is_used(store):
    with store.transaction() as tx:
        tx.execute("insert into drivers values ('d', 's', '{}', '{}')")
        tx.execute("update meta set value = ? where key = 'next'", rows.LAST_NUMBER)
        assert rows.next_number(tx) == rows.LAST_NUMBER
        rows.insert_active(tx, 1, "x", "d", None, boot_id="", created=0)
        containers.insert(tx, container(2))
        assert rows.next_number(tx) == 3


def image(name, diffs, blobs):
    return ImageRow(
        "sha256:" + name * 64, "sha256:" + name * 64, b"", "", b"{}", diffs, images.chain_ids(diffs), blobs, "", 0, 0, 0
    )


def test_a_layer_that_is_being_removed_takes_no_child_and_is_not_found(store):
    with store.transaction() as tx:
        tx.execute("insert into drivers values ('d', 's', '{}', '{}')")
        rows.insert_active(tx, 5, "x", "d", None, boot_id="", created=0)
        rows.set_committed(tx, 5, driver="d", chain_id="sha256:aa", diff_id="sha256:aa", data={"k": 1}, durable=True)
    assert rows.by_chain(store, "d", "sha256:aa").data == {"k": 1}
    assert rows.loose(store, "d") == [5]
    with store.transaction() as tx:
        tx.execute("insert into journal values (5, 'remove', '{}')")
    assert rows.by_chain(store, "d", "sha256:aa") is None
    assert rows.loose(store, "d") == []
    with pytest.raises(Busy), store.transaction() as tx:
        rows.insert_active(tx, 6, "y", "d", 5, boot_id="", created=0)
    with pytest.raises(Busy), store.transaction() as tx:
        rows.insert_active(tx, 6, "y", "d", 77, boot_id="", created=0)


def test_a_leased_blob_is_not_deleted_and_a_dead_lease_is_void(store):
    gone = []
    with store.transaction() as tx:
        images.insert(tx, image("a", (), (("sha256:listed", "", 1),)))
    wanted = ["sha256:listed", "sha256:free", "sha256:leased", "sha256:dead"]
    with store.transaction() as tx:
        tx.execute("insert into leases values ('sha256:dead', 4242)")
    other = again(store)
    with leases.Lease(other, ["sha256:leased"]):
        assert leases.delete_unused(store, gone.append, wanted) == ["sha256:free", "sha256:dead"]
        assert gone == ["sha256:free", "sha256:dead"]
        with leases.Lease(store, ["sha256:dead"]):  # a process's own lease counts as well
            assert leases.delete_unused(store, gone.append, ["sha256:dead"]) == []
    assert sorted(leases.delete_unused(store, gone.append)) == ["sha256:dead", "sha256:leased"]
    assert store.query("select count(*) from leases") == [(0,)]
    other.close()


def test_a_lease_is_void_when_its_taker_was_killed(store):
    code = """
        import os, sys
        from cowshed.state.leases import Lease
        from cowshed.state.store import BALLAST, open_store
        with Lease(open_store(sys.argv[1], sys.argv[1] + ".run"), ["sha256:wanted"]):
            print("taken", flush=True)
            os.read(0, 1)
    """
    taker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), store.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert taker.stdout.readline() == b"taken\n"
    gone = []
    assert leases.delete_unused(store, gone.append, ["sha256:wanted"]) == []
    taker.kill()
    taker.communicate()
    assert leases.delete_unused(store, gone.append) == gone == ["sha256:wanted"]
    assert store.query("select count(*) from leases") == [(0,)]


def test_volumes_and_their_users(store):
    with store.transaction() as tx:
        containers.insert(tx, container(1))
        volumes.insert(tx, VolumeRow("v", 1, True, {}))
        volumes.use(tx, "v", 1)
    assert volumes.users(store, "v") == [1]
    with store.transaction() as tx:
        containers.delete(tx, 1)
    assert volumes.users(store, "v") == []
