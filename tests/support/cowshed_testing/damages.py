"""What can happen to a store: each damage as data, done by a script, with what a check must find of it.

`docs/reference/damage.md` is made of this table, and `tests/e2e/test_damage.py` does it all to a store of each driver.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

DIRECTORIES = ("overlay", "copy", "btrfs", "aufs")  # drivers whose layers are seen as directories below the store
CONTENT = {"overlay": "upper", "copy": "root", "btrfs": "root", "aufs": "diff"}
STRANGER = "f" * 32


@dataclass(frozen=True)
class Damage:
    """found: the codes of the findings, sorted. after: CLEAN, or CANNOT if repair must say so and leave all as it is.
    lost: what is not as before after the repair, as patterns of what the test looks at."""

    name: str
    text: str
    found: tuple[str, ...]
    do: Callable[[Shop], None]
    deep: bool = False
    how: str = "repair"  # repair, rebuild (--rebuild-database), cannot
    drivers: tuple[str, ...] = ()  # () = every one
    lost: tuple[str, ...] = ()
    does: str = ""  # what repair does, for the page

    @property
    def concerns_driver(self) -> bool:
        """Whether a driver has a part in it, or in its repair."""
        return bool(self.drivers) or self.how == "rebuild" or self.found[0].startswith(("layer.", "object.", "driver."))


DAMAGES: list[Damage] = []


def damage(name: str, text: str, *found: str, does: str, **rest: object) -> Callable[[Callable], Callable]:
    def add(do: Callable[[Shop], None]) -> Callable[[Shop], None]:
        DAMAGES.append(Damage(name, text, tuple(sorted(found)), do, does=does, **rest))  # type: ignore[arg-type]
        return do

    return add


@dataclass
class Shop:
    """A store with an image of three layers, and a container `one` with a volume; nothing runs."""

    engine: object
    driver: str
    root: Path
    scratch: Path
    given: dict[str, str]  # options of the driver
    undo: list[Callable[[], object]] = field(default_factory=list)  # what puts a damage right that repair cannot

    def query(self, sql: str, *values: object) -> list[tuple]:
        with contextlib.closing(sqlite3.connect(self.root / "db.sqlite")) as db:
            return db.execute(sql, values).fetchall()

    def execute(self, *statements: str) -> None:
        """As somebody who knows nothing of references: none of them is looked at."""
        with contextlib.closing(sqlite3.connect(self.root / "db.sqlite", isolation_level=None)) as db:
            for statement in statements:
                db.execute(statement)

    @property
    def run(self) -> Path:
        return Path(self.engine.run_root) / self.query("select value from meta where key = 'store'")[0][0][:12]

    @property
    def image(self) -> str:
        return self.query("select id from images")[0][0]

    @property
    def container(self) -> tuple[int, str]:
        return self.query("select number, id from containers where name = 'one'")[0]

    def layer(self, depth: int = 3) -> tuple[int, str]:
        """Number and id of a layer of the image, 1 for the lowest."""
        return self.query(
            "with recursive c(number, id, depth) as (select number, id, 1 from layers where parent is null union all "
            "select l.number, l.id, depth + 1 from layers l join c on l.parent = c.number where l.kind = 'committed' "
            "and l.diff_id is not null) select number, id from c where depth = ?",
            depth,
        )[0]

    def blob(self, depth: int = 3) -> Path:
        (listed,) = self.query("select blobs from images")[0]
        return self.root / "blobs/sha256" / json.loads(listed)[depth - 1][0][7:]

    def drop(self) -> Path:
        """Drop the archive of the lowest layer; where its recipe is."""
        from cowshed.image.archives import Archives
        from cowshed.state.store import open_store

        with contextlib.closing(open_store(str(self.root), str(self.engine.run_root))) as store:
            archives = Archives(store)
            digest = f"sha256:{self.blob(1).name}"
            assert list(archives.drop(archives.fates([digest]))) == [digest]
        return self.root / "blobs/recipes" / digest.replace(":", "-")

    @property
    def objects(self) -> Path:
        return self.root / "drivers" / self.driver

    def place(self, depth: int = 3) -> Path:
        """The directory of a layer of the image."""
        return self.objects / "committed" / self.layer(depth)[1]

    @contextlib.contextmanager
    def writable(self, depth: int = 3, folder: str = "srv"):
        """The tree that a committed layer keeps by itself, for somebody who goes around the driver; folder is the one
        that is changed."""
        place = self.place(depth)
        if self.driver == "btrfs":
            subprocess.run(["btrfs", "property", "set", "-f", place, "ro", "false"], check=True, capture_output=True)
        tree = place / CONTENT[self.driver]
        times = {path: os.lstat(path) for path in (tree, tree / folder)}
        yield tree
        for path, status in times.items():
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        if self.driver == "btrfs":
            subprocess.run(["btrfs", "property", "set", "-f", place, "ro", "true"], check=True, capture_output=True)

    @contextlib.contextmanager
    def opened(self):
        """The driver, in this process, for somebody who goes around the engine."""
        from cowshed.layers.driver import open_driver
        from cowshed.state.store import open_store

        store = open_store(str(self.root), str(self.engine.run_root))
        driver = open_driver(store, self.driver, self.given)
        try:
            yield driver
        finally:
            driver.close()
            store.close()

    def put_away(self, path: Path) -> None:
        """Move something out of the store, to come back if it cannot be repaired."""
        kept = self.scratch / path.name
        os.rename(path, kept)
        self.undo.append(lambda: os.rename(kept, path))

    def back(self) -> None:
        while self.undo:
            self.undo.pop()()


# ---------------------------------------------------------------- the store's own files


@damage("lock-file-lost", "a lock file is deleted", "file.missing", does="makes it again")
def _(shop):
    os.unlink(shop.root / "locks/gc")


@damage(
    "locks-lost", "the directory of the lock files is deleted", "file.missing", does="makes it again, with its files"
)
def _(shop):
    shutil.rmtree(shop.root / "locks")


@damage("cache-lost", "the directory `cache` is deleted", "file.missing", does="makes it again")
def _(shop):
    shutil.rmtree(shop.root / "cache")


@damage("partial-lost", "the directory of half-made blobs is deleted", "file.missing", does="makes it again")
def _(shop):
    shutil.rmtree(shop.root / "blobs/partial")


@damage("store-open-to-all", "the store's directory has mode 777", "file.mode", does="sets it to 700")
def _(shop):
    os.chmod(shop.root, 0o777)


@damage("containers-open-to-all", "the directory `containers` has mode 755", "file.mode", does="sets it to 700")
def _(shop):
    os.chmod(shop.root / "containers", 0o755)


@damage("blobs-of-another", "the directory `blobs` belongs to another user", "file.owner", does="takes it back")
def _(shop):
    os.chown(shop.root / "blobs", 12345, 12345)


@damage("database-of-another", "the database belongs to another user", "file.owner", does="takes it back")
def _(shop):
    os.chown(shop.root / "db.sqlite", 12345, 12345)


# ---------------------------------------------------------------- the database as a whole


def _remove_database(shop):
    for suffix in ("", "-wal", "-shm"):
        Path(f"{shop.root}/db.sqlite{suffix}").unlink(missing_ok=True)


# Which repository had a blob is told by nothing else: a push that does not know it sends the blob.
# The indexes that names stand for are fetched again.
REBUILT = (
    "db:containers:*", "db:volumes:*", "db:drivers:*", "db:meta:*", "db:blob_places:*", "db:indexes:*", "file:lost-*",
)  # fmt: skip


@damage("database-lost", "the database is deleted", "database.missing", how="rebuild", lost=REBUILT,
        does="cannot by itself; `--rebuild-database` makes it again")  # fmt: skip
def _(shop):
    _remove_database(shop)


@damage("database-overwritten", "the database is overwritten with something else", "database.unreadable",
        how="rebuild", lost=REBUILT, does="cannot by itself; `--rebuild-database` makes it again")  # fmt: skip
def _(shop):
    _remove_database(shop)
    (shop.root / "db.sqlite").write_bytes(os.urandom(1 << 16))


@damage("database-page-lost", "a page of the database is overwritten", "database.damaged", how="rebuild", deep=True,
        lost=REBUILT, does="cannot by itself; `--rebuild-database` makes it again")  # fmt: skip
def _(shop):
    shop.execute("pragma wal_checkpoint(truncate)")
    page = shop.query("select rootpage from sqlite_master where name = 'images'")[0][0]
    size = shop.query("pragma page_size")[0][0]
    with open(shop.root / "db.sqlite", "r+b") as file:
        file.seek((page - 1) * size)
        file.write(os.urandom(size))


@damage("database-older", "an older copy of the database is put back: its counters are behind", "database.old",
        lost=("db:meta:*",), does="raises the counters above what was ever given away")  # fmt: skip
def _(shop):
    shop.execute("update meta set value = 1 where key in ('given', 'next')")


# ---------------------------------------------------------------- rows


@damage("tag-of-nothing", "a name stands for an image that is not there", "database.reference", does="deletes the name")
def _(shop):
    shop.execute(f"insert into tags (name, image) values ('example.org/x:1', 'sha256:{'0' * 64}')")


@damage("journal-of-nothing", "the journal has a row of a layer that is not there", "database.reference",
        does="deletes the row")  # fmt: skip
def _(shop):
    shop.execute("insert into journal values (4711, 'remove', '{}')")


@damage("journal-remains", "a layer was begun and not ended: its journal row remains", "journal.unfinished",
        does="undoes what was begun")  # fmt: skip
def _(shop):
    shop.execute(
        "insert into layers (number, id, driver, kind, parent, boot_id, created) "
        f"values (4711, '{STRANGER}', '{shop.driver}', 'active', {shop.layer()[0]}, 'x', 1)",
        "insert into journal values (4711, 'apply', '{}')",
    )


@damage("volume-user-of-nothing", "a volume is said to be of a container that is not there", "database.reference",
        does="deletes the row")  # fmt: skip
def _(shop):
    shop.execute("insert into volume_users select name, 4711 from volumes")


@damage("chain-row-lost", "a row of the layers that an image stands on is lost", "image.tables", does="writes it again")
def _(shop):
    shop.execute("delete from chains where chain_id = (select min(chain_id) from chains)")


@damage("blob-row-lost", "a row of the blobs that an image lists is lost", "image.tables", does="writes it again")
def _(shop):
    shop.execute("delete from image_blobs where digest = (select min(digest) from image_blobs)")


@damage("image-row-lost", "an image's rows are lost", "image.lost-row", "database.reference",
        does="writes them again, from the image's record")  # fmt: skip
def _(shop):
    shop.execute(*(f"delete from {table}" for table in ("tags", "chains", "image_blobs", "origins", "images")))


@damage("image-config-changed", "an image's configuration in the database is another", "image.damaged",
        does="takes it from the image's record")  # fmt: skip
def _(shop):
    shop.execute("update images set config = cast('{}' as blob)")


@damage("image-lists-changed", "an image's list of layers contradicts its manifest", "image.damaged",
        does="takes it from the image's record")  # fmt: skip
def _(shop):
    shop.execute("update images set diff_ids = '[]'")


@damage("container-row-lost", "a container's row is lost", "container.lost-row", "database.reference",
        lost=("db:containers:*",), does="writes it again, from the container's record")  # fmt: skip
def _(shop):
    shop.execute("delete from containers")


@damage("container-layer-row-lost", "the row of a container's layer is lost", "layer.lost-row",
        does="writes it again, from the container's record")  # fmt: skip
def _(shop):
    shop.execute(f"delete from layers where number = {shop.container[0]}")


@damage("layer-row-lost", "the row of an image's layer is lost", "layer.lost-row",
        does="writes it again, from the layer's record")  # fmt: skip
def _(shop):
    shop.execute(f"delete from layers where number = {shop.layer()[0]}")


@damage("layer-on-nothing", "a layer is said to have nothing below it", "layer.contradiction",
        does="takes what the layer's record says")  # fmt: skip
def _(shop):
    shop.execute(f"update layers set parent = null where number = {shop.layer(2)[0]}")


@damage("container-on-another", "a container's layer is said to stand on another layer", "layer.contradiction",
        does="takes what the container's record says")  # fmt: skip
def _(shop):
    shop.execute(f"update layers set parent = {shop.layer(1)[0]} where number = {shop.container[0]}")


@damage("container-of-another-driver", "a container is said to be in another driver", "container.contradiction",
        does="takes what its layer says")  # fmt: skip
def _(shop):
    shop.execute("update containers set driver = 'other'")


@damage(
    "layer-said-writable", "an image's layer is said to be writable", "layer.kind", does="takes what the driver says"
)
def _(shop):
    shop.execute(f"update layers set kind = 'active' where number = {shop.layer()[0]}")


@damage("container-said-committed", "a container's layer is said to be committed", "layer.kind",
        does="takes what the driver says")  # fmt: skip
def _(shop):
    shop.execute(f"update layers set kind = 'committed' where number = {shop.container[0]}", "delete from loose_layers")


@damage("layer-row-of-nothing", "the database knows a layer that no driver has", "layer.missing", does="forgets it")
def _(shop):
    shop.execute(
        "insert into layers (number, id, driver, kind, boot_id, created, durable) "
        f"values (4711, '{STRANGER}', '{shop.driver}', 'committed', 'x', 1, 1)"
    )


@damage("writable-layer-of-nothing", "the database knows a writable layer of no container, and no driver has it",
        "layer.missing", "layer.ownerless", does="forgets it")  # fmt: skip
def _(shop):
    shop.execute(
        "insert into layers (number, id, driver, kind, parent, boot_id, created) "
        f"values (4711, '{STRANGER}', '{shop.driver}', 'active', {shop.layer()[0]}, 'x', 1)"
    )


@damage("container-lost-from-everything", "a container's row is lost, and its directory too",
        "database.reference", "layer.ownerless", "run.left", how="cannot",
        does="cannot: what was written in it is there, and only `--remove-layer` removes it")  # fmt: skip
def _(shop):
    folder = shop.root / "containers" / shop.container[1]
    (row,) = shop.query("select * from containers")
    used = shop.query("select * from volume_users")
    shop.put_away(folder)
    shop.execute("delete from containers")

    def put_back():
        with contextlib.closing(sqlite3.connect(shop.root / "db.sqlite", isolation_level=None)) as db:
            db.execute(f"insert into containers values ({', '.join('?' * len(row))})", row)
            db.executemany("insert or ignore into volume_users values (?, ?)", used)
        (shop.run / "c" / shop.container[1][:32]).mkdir(exist_ok=True)

    shop.undo.append(put_back)


@damage("container-row-of-nothing", "the database knows a container that has no layer", "container.no-layer",
        does="forgets the container")  # fmt: skip
def _(shop):
    shop.execute(
        f"insert into containers (number, id, name, image_ref, driver, state, created, config) "
        f"values (4711, '{STRANGER * 2}', 'nothing', '', '{shop.driver}', 'created', 1, '{{}}')"
    )


@damage("layer-not-durable", "a layer was written in an earlier boot and never synced", "layer.suspect",
        does="makes the layer again from its archive")  # fmt: skip
def _(shop):
    shop.execute(f"update layers set durable = 0, boot_id = 'earlier' where number = {shop.layer()[0]}")


# ---------------------------------------------------------------- blobs


@damage("blob-lost", "an archive of an image's layer is deleted", "blob.missing", does="fetches it from its registry")
def _(shop):
    shop.blob().unlink()


@damage("blob-cut", "an archive is cut short", "blob.size", does="fetches it again")
def _(shop):
    os.truncate(shop.blob(), 10)


@damage("blob-changed", "a bit of an archive is another", "blob.damaged", deep=True, does="fetches it again")
def _(shop):
    with open(shop.blob(), "r+b") as file:
        file.seek(40)
        byte = file.read(1)
        file.seek(40)
        file.write(bytes([byte[0] ^ 1]))


@damage("blob-lost-for-good", "an archive is deleted, and no image that lists it has a name", "blob.missing",
        how="cannot", lost=("db:blob_places:*",), does="cannot: it says so, and to load the image again")  # fmt: skip
def _(shop):
    for name, digest in shop.query("select name, digest from tags"):
        shop.engine.ok("untag", name)
        # what the name stands for in its registry is known by asking there, as is then where blobs are
        again = ("pull", name) if digest else ("tag", shop.image[7:], name)
        shop.undo.append(lambda again=again: shop.engine.ok(*again))
    shop.put_away(shop.blob())


@damage("blob-of-nobody", "an archive lies there that no image lists", "blob.unlisted", does="deletes it")
def _(shop):
    import hashlib

    (shop.root / "blobs/sha256" / hashlib.sha256(b"x").hexdigest()).write_bytes(b"x")


@damage("stranger-among-blobs", "a file lies among the blobs whose name is no digest", "blob.stray", does="deletes it")
def _(shop):
    (shop.root / "blobs/sha256/stranger").write_bytes(b"x")


@damage("half-made-blob", "a command died while it packed an archive", "blob.left", does="deletes it")
def _(shop):
    (shop.root / "blobs/partial/new.1.0").write_bytes(b"x")


@damage("staging-remains", "a command died while it read an archive of images", "blob.left", does="deletes it")
def _(shop):
    (shop.root / "blobs/partial/stage.1.ffffffff").mkdir()
    (shop.root / "blobs/partial/stage.1.ffffffff/new").write_bytes(b"x")


@damage("list-row-lost", "the row of a list that `manifest create` began is lost", "list.lost-row",
        lost=("db:lists:*", "file:records/lists/*"), does="writes it again, from the list's record")  # fmt: skip
def _(shop):
    (name,) = shop.query("select name from tags limit 1")[0]
    shop.engine.ok("manifest", "create", "--amend", "test/list", name)
    shop.execute("delete from lists")


DROPPED = ("file:blobs/recipes",)  # which stays when the recipe in it is gone


@damage("recipe-changed", "a bit of the recipe of a dropped archive is another", "blob.recipe", lost=DROPPED,
        does="fetches the archive again")  # fmt: skip
def _(shop):
    recipe = shop.drop()
    data = recipe.read_bytes()
    recipe.write_bytes(data[:300] + bytes([data[300] ^ 1]) + data[301:])


@damage("recipe-lost", "the recipe of a dropped archive is deleted", "blob.missing", lost=DROPPED,
        does="fetches the archive again")  # fmt: skip
def _(shop):
    shop.drop().unlink()


@damage("layer-of-dropped-changed", "the bytes of a file of a layer are others, whose archive was dropped",
        "blob.damaged", "layer.content", deep=True, drivers=DIRECTORIES, lost=DROPPED,
        does="fetches the archive, then makes the layer again")  # fmt: skip
def _(shop):
    shop.drop()
    with shop.writable(1, "bin") as tree, open(tree / "bin/busybox", "r+b") as file:
        status = os.fstat(file.fileno())
        file.seek(4096)
        file.write(b"xxxx")
        file.flush()
        os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))


@damage("layer-of-dropped-lost", "a layer is deleted, whose archive was dropped", "layer.missing", drivers=DIRECTORIES,
        lost=DROPPED, does="fetches the archive, then makes the layer again")  # fmt: skip
def _(shop):
    shop.drop()
    _delete(shop, shop.place(1))


# ---------------------------------------------------------------- what drivers hold


@damage("orphan", "a driver has a committed layer that nobody knows", "object.orphan", does="removes it")
def _(shop):
    from cowshed.storage import api
    from cowshed.storage.errors import LayerId

    layer = api.Layer(LayerId(STRANGER), 4711, api.Kind.ACTIVE)
    with shop.opened() as driver:
        driver.prepare(layer, api.LayerOptions())
        driver.commit(layer, api.Layer(layer.id, 4711, api.Kind.COMMITTED), api.Durability.NONE)


@damage("unknown-writable-layer", "a driver has a writable layer that neither the database nor a record knows",
        "layer.unknown", how="cannot",
        does="cannot: it may be a container's, and only `--remove-layer` removes it")  # fmt: skip
def _(shop):
    from cowshed.storage import api
    from cowshed.storage.errors import LayerId

    layer = api.Layer(LayerId(STRANGER), 4711, api.Kind.ACTIVE)

    def take_away():
        with shop.opened() as driver:
            driver.remove(layer)
            driver.purge(lambda _: contextlib.nullcontext(True), 60)

    with shop.opened() as driver:
        driver.prepare(layer, api.LayerOptions())
    shop.undo.append(take_away)


@damage("half-made-layer", "a driver has a half-made layer that nobody knows", "object.orphan", drivers=DIRECTORIES,
        does="removes it")  # fmt: skip
def _(shop):
    (shop.objects / "temp" / STRANGER).mkdir()


@damage("layer-lost", "an image's layer is deleted", "layer.missing", drivers=DIRECTORIES,
        does="makes it again, in its place, from its archive")  # fmt: skip
def _(shop):
    _delete(shop, shop.place())


@damage("layer-taken-away", "an image's layer is taken away by somebody who has the driver do it", "layer.missing",
        does="makes it again, in its place, from its archive")  # fmt: skip
def _(shop):
    from cowshed.storage import api
    from cowshed.storage.errors import LayerId

    number, id_ = shop.layer()
    with shop.opened() as driver:
        driver.remove(api.Layer(LayerId(id_), number, api.Kind.COMMITTED))
        driver.purge(lambda _: contextlib.nullcontext(True), 60)


@damage("layer-and-archive-lost", "an image's layer is deleted, and its archive too", "layer.missing", "blob.missing",
        drivers=DIRECTORIES, does="fetches the archive, then makes the layer again")  # fmt: skip
def _(shop):
    _delete(shop, shop.place())
    shop.blob().unlink()


@damage("lowest-layer-lost", "the layer that all others stand on is deleted", "layer.missing", drivers=DIRECTORIES,
        does="makes it again, in its place, from its archive")  # fmt: skip
def _(shop):
    _delete(shop, shop.place(1))


@damage("layer-renamed", "an image's layer has another name", "layer.missing", "object.orphan",
        drivers=("overlay", "copy"), does="makes it again, and removes the stranger")  # fmt: skip
def _(shop):
    os.rename(shop.place(), shop.objects / "committed" / STRANGER)


@damage("layer-hollow", "an image's layer has lost the directory with its files", "layer.unusable",
        drivers=("overlay", "copy"), does="makes it again, in its place, from its archive")  # fmt: skip
def _(shop):
    shutil.rmtree(shop.place() / CONTENT[shop.driver])


@damage("layer-moved-back", "a power cut has taken a commit back: the layer is writable on disk", "layer.kind",
        drivers=("overlay", "copy"), does="makes it again, in its place, from its archive")  # fmt: skip
def _(shop):
    id_ = shop.layer()[1]
    os.rename(shop.objects / "committed" / id_, shop.objects / "active" / id_)


@damage("file-changed", "the bytes of a file of an image's layer are others; size and time are the same",
        "layer.content", deep=True, drivers=DIRECTORIES, does="makes the layer again")  # fmt: skip
def _(shop):
    with shop.writable() as tree:
        status = os.stat(tree / "srv/three")
        (tree / "srv/three").write_text("THREE\n"[: status.st_size])
        os.utime(tree / "srv/three", ns=(status.st_atime_ns, status.st_mtime_ns))


@damage("file-lost", "a file of an image's layer is deleted", "layer.content", deep=True, drivers=DIRECTORIES,
        does="makes the layer again")  # fmt: skip
def _(shop):
    with shop.writable() as tree:
        os.unlink(tree / "srv/three")


@damage("file-added", "a file is put into an image's layer", "layer.content", deep=True, drivers=DIRECTORIES,
        does="makes the layer again")  # fmt: skip
def _(shop):
    with shop.writable() as tree:
        (tree / "srv/stranger").write_text("x")


@damage("mode-changed", "a file of an image's layer has another mode", "layer.content", deep=True, drivers=DIRECTORIES,
        does="makes the layer again")  # fmt: skip
def _(shop):
    with shop.writable() as tree:
        os.chmod(tree / "srv/three", 0o4755)


@damage("owner-changed", "a file of an image's layer has another owner", "layer.content", deep=True,
        drivers=DIRECTORIES, does="makes the layer again")  # fmt: skip
def _(shop):
    with shop.writable() as tree:
        os.chown(tree / "srv/three", 12345, 12345)


@damage("time-changed", "a file of an image's layer has another time", "layer.content", deep=True, drivers=DIRECTORIES,
        does="makes the layer again")  # fmt: skip
def _(shop):
    with shop.writable() as tree:
        os.utime(tree / "srv/three", (1, 1))


@damage("whiteout-lost", "a name that a layer has deleted is there again", "layer.content", deep=True,
        drivers=("overlay",), does="makes the layer again")  # fmt: skip
def _(shop):
    with shop.writable() as tree:
        os.unlink(tree / "srv/two")


@damage("container-layer-lost", "the layer of a container is deleted", "layer.missing", drivers=DIRECTORIES,
        lost=("db:containers:*", "db:layers:*", "db:volume_users:*", "file:containers/*", "layer:*"),
        does="forgets the container: what was written in it is lost, and its volumes stay")  # fmt: skip
def _(shop):
    _delete(shop, shop.objects / "active" / shop.container[1][:32])


@damage("work-directory-lost", "a container's layer has lost overlay's work directory", "driver.no-work",
        drivers=("overlay",), does="makes it again")  # fmt: skip
def _(shop):
    shutil.rmtree(shop.objects / "active" / shop.container[1][:32] / "work")


@damage("layer-unsealed", "an image's layer is a subvolume that can be written", "driver.unsealed", drivers=("btrfs",),
        does="makes it read-only")  # fmt: skip
def _(shop):
    subprocess.run(["btrfs", "property", "set", "-f", shop.place(), "ro", "false"], check=True, capture_output=True)


@damage("driver-identity-lost", "a driver's store has lost its identity", "driver.unusable", drivers=DIRECTORIES,
        how="cannot", does="cannot: it says so")  # fmt: skip
def _(shop):
    shop.put_away(shop.objects / "store")


@damage("driver-not-mounted", "the directory of a driver is empty, as when its file system is not mounted",
        "driver.unusable", drivers=("overlay", "copy"), how="cannot",
        does="cannot: it asks whether the file system is mounted")  # fmt: skip
def _(shop):
    shop.put_away(shop.objects)
    shop.objects.mkdir(0o700)
    shop.undo.append(shop.objects.rmdir)


@damage("unknown-driver", "a directory of a driver lies there that the database does not know", "driver.unknown",
        how="cannot", does="cannot: it names `--rebuild-database`")  # fmt: skip
def _(shop):
    (shop.root / "drivers/other").mkdir()
    (shop.root / "drivers/other/store").touch()
    shop.undo.append(lambda: shutil.rmtree(shop.root / "drivers/other"))


# ---------------------------------------------------------------- containers and volumes


@damage("configuration-damaged", "a container's config.json is cut short", "container.config",
        does="makes it again from what was asked for")  # fmt: skip
def _(shop):
    os.truncate(shop.root / "containers" / shop.container[1] / "config.json", 100)


@damage("configuration-lost", "a container's config.json is deleted", "container.config",
        does="makes it again from what was asked for")  # fmt: skip
def _(shop):
    os.unlink(shop.root / "containers" / shop.container[1] / "config.json")


@damage("container-directory-lost", "a container's directory is deleted", "container.config",
        lost=("file:containers/*/log",),
        does="makes it again from what was asked for; its log is lost")  # fmt: skip
def _(shop):
    shutil.rmtree(shop.root / "containers" / shop.container[1])


@damage("directory-of-no-container", "a directory lies there of no container", "container.folder", does="deletes it")
def _(shop):
    (shop.root / "containers/stranger").mkdir()


@damage("volume-lost", "the directory of a volume is deleted", "volume.missing", lost=("file:volumes/*",),
        does="makes it again, empty: what was in it is lost")  # fmt: skip
def _(shop):
    (name,) = os.listdir(shop.root / "volumes")
    shutil.rmtree(shop.root / "volumes" / name)


@damage("volume-row-lost", "a volume's row is lost", "volume.unknown", "database.reference", lost=("db:volumes:*",),
        does="writes it down again; its labels are lost")  # fmt: skip
def _(shop):
    shop.execute("delete from volumes", "delete from loose_volumes")


# ---------------------------------------------------------------- records


@damage("image-record-damaged", "the record of an image is cut short", "record.wrong", does="writes it again")
def _(shop):
    os.truncate(shop.root / "records/images" / shop.image[7:], 100)


@damage("layer-record-changed", "the record of a layer says something else", "record.wrong", does="writes it again")
def _(shop):
    (shop.root / "records/layers" / shop.layer()[1]).write_text("{}")


@damage("container-record-damaged", "the record of a container is empty", "record.wrong", does="writes it again")
def _(shop):
    os.truncate(shop.root / "containers" / shop.container[1] / "record", 0)


@damage("record-of-nothing", "a record is left of a layer that is no more", "record.left", does="deletes it")
def _(shop):
    (shop.root / "records/layers" / STRANGER).write_text("{}")


# ---------------------------------------------------------------- the host


@damage("stale-mount", "a layer is mounted by hand", "mount.stale", drivers=DIRECTORIES, does="unmounts it")
def _(shop):
    point = shop.scratch / "mounted"
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", shop.place(), point], check=True)


@damage("active-remains", "a command died while it set a layer up", "run.active", does="takes it down")
def _(shop):
    (shop.run / "active").mkdir(parents=True, exist_ok=True)
    (shop.run / "active/4711").touch()


@damage("run-directory-remains", "the run directory has something of a container that is no more", "run.left",
        does="deletes it")  # fmt: skip
def _(shop):
    (shop.run / "c" / STRANGER).mkdir(parents=True)


def _delete(shop: Shop, place: Path) -> None:
    if shop.driver == "btrfs":
        subprocess.run(["btrfs", "property", "set", "-f", place, "ro", "false"], check=True, capture_output=True)
        subprocess.run(["btrfs", "subvolume", "delete", place], check=True, capture_output=True)
    else:
        shutil.rmtree(place)


def of(driver: str) -> list[Damage]:
    """Those that can be done to a store of a driver."""
    return [each for each in DAMAGES if not each.drivers or driver in each.drivers]
