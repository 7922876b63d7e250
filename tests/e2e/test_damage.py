"""Every damage of the table (`cowshed_testing.damages`), done to a store of each driver: `storage check` finds it and
nothing else, `storage repair` makes the next check clean and touches nothing else, or says truly that it cannot."""

import contextlib
import hashlib
import json
import os
import sqlite3
import stat
from fnmatch import fnmatchcase as fnmatch
from pathlib import Path

import pytest
from cowshed_testing import damages

# On this machine, and what only guests have: there these are run by name. What has nothing to do with the driver is
# done to one of them, unless COWSHED_DAMAGES=all.
DRIVERS = ["overlay", "copy", "btrfs"]
IN_A_GUEST = ["devicemapper", "zfs", "aufs"]
EVERY = os.environ.get("COWSHED_DAMAGES") == "all"
ALL = [
    pytest.param(place, each, id=f"{place}-{each.name}", marks=[pytest.mark.guest] if place in IN_A_GUEST else [])
    for place in (*DRIVERS, *IN_A_GUEST)
    for each in damages.of(place)
    if EVERY or place == "overlay" or each.concerns_driver
]
_NOT_COMPARED = ("db.sqlite", "locks/", "cache/", "drivers/", "numbers", "ballast")


class Stores:
    """A store of a driver, used by one damage after the other; made anew after one that was not put right."""

    def __init__(self, folder, engine_on, image):
        self.folder, self.engine_on, self.image = folder, engine_on, image
        self.where, self.stack, self.shop, self.count = "", contextlib.ExitStack(), None, 0

    def shop_of(self, where):
        if self.shop is not None and self.where == where:
            return self.shop
        self.close()
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        engine = self.stack.enter_context(self.engine_on(where, folder))
        engine.ok("pull", "-q", self.image)
        given = dict(word.split("=", 1) for word in engine.options if "=" in word)
        away = Path(engine.root).parent / "away"
        away.mkdir()
        self.where, self.shop = where, damages.Shop(engine, engine.driver, engine.root, away, given)
        self.complete()
        return self.shop

    def complete(self):
        """What a damage may have cost."""
        if not self.shop.query("select 1 from containers"):
            for (name,) in self.shop.query("select name from volumes"):
                self.shop.engine.ok("volume", "rm", name)
            self.shop.engine.ok("run", "--name", "one", "-v", "/data", self.image, "sh", "-c", "echo x > /new")

    def broken(self):
        self.where = ""

    def close(self):
        self.shop = None
        self.stack.close()


@pytest.fixture(scope="module")
def stores(tmp_path_factory, engine_on, greeting):
    it = Stores(tmp_path_factory.mktemp("damage"), engine_on, greeting)
    yield it
    it.close()


def told(engine, *words):
    """(code, severity) of each finding but notes, and the exit status."""
    done = engine("storage", "check", "--format", "json", *words)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return done, [each for each in found if each["Severity"] != "note"]


def look(shop):
    """All that a repair could touch: rows, the files beside the drivers, and the tree of every layer."""
    seen = {}
    with contextlib.closing(sqlite3.connect(f"file:{shop.root}/db.sqlite?mode=ro", uri=True)) as db:
        for (table,) in db.execute("select name from sqlite_master where type = 'table'").fetchall():
            columns = [row[1] for row in db.execute(f"pragma table_info({table})") if row[1] not in _VOLATILE]
            for row in db.execute(f"select {', '.join(columns)} from {table}"):
                seen[f"db:{table}:{row!r}"] = True
    for folder, folders, names in os.walk(shop.root):
        for name in (*names, *folders):
            path = os.path.join(folder, name)
            short = os.path.relpath(path, shop.root)
            if not f"{short}/".startswith(_NOT_COMPARED) and not short.startswith("db.sqlite"):
                seen[f"file:{short}"] = _file(path)
    seen.update(_trees(shop))
    return seen


_VOLATILE = {"boot_id", "created", "durable", "remembered", "pulled"}


def _file(path):
    status = os.lstat(path)
    data = b""
    if stat.S_ISREG(status.st_mode):
        data = hashlib.sha256(Path(path).read_bytes()).digest()
    elif stat.S_ISLNK(status.st_mode):
        data = os.readlink(path).encode()
    return status.st_mode, status.st_uid, status.st_gid, data


def _trees(shop):
    from cowshed.layers.driver import open_driver
    from cowshed.layers.layers import Layers
    from cowshed.state.store import open_store

    store = open_store(str(shop.root), str(shop.engine.run_root))
    layers = Layers(store, shop.driver, open_driver(store, shop.driver, shop.given))
    seen = {}
    try:
        for number, id_ in store.query("select number, id from layers"):
            with layers.mounted(layers.load(number), read_only=True) as fd:
                top = f"/proc/self/fd/{fd}"
                for folder, folders, names in os.walk(top):
                    for name in (*names, *folders):
                        path = os.path.join(folder, name)
                        time = 0 if os.path.isdir(path) else os.lstat(path).st_mtime_ns
                        seen[f"layer:{id_}:{os.path.relpath(path, top)}"] = (*_file(path), time)
    finally:
        layers.driver.close()
        store.close()
    return seen


@pytest.mark.parametrize(("where", "each"), ALL)
def test_a_damage_is_found_and_put_right(stores, where, each):
    shop = stores.shop_of(where)
    engine, deep = shop.engine, ["--deep"] if each.deep else []
    before = look(shop)
    stores.broken()  # until all is as it was
    each.do(shop)
    done, found = told(engine, *deep)
    assert sorted(finding["Code"] for finding in found) == list(each.found), (found, done.stderr)
    assert done.returncode == 1
    if each.how == "rebuild":
        assert all("--rebuild-database" in finding["Remedy"] for finding in found)
        done = engine("storage", "repair", "--rebuild-database", "-f", *deep)
    else:
        done = engine("storage", "repair", "-f", *deep)
    if each.how == "cannot":
        assert done.returncode == 1, done
        assert b"failed: " in done.stdout or b"cannot be repaired: " in done.stdout
        shop.back()
    else:
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, b"clean"), done
        steps = [line.split()[1] for line in done.stdout.decode().splitlines() if line.startswith("done: ")]
        assert sorted(steps) == (list(each.found) if each.how == "repair" else []), done
    done, found = told(engine, "--deep")
    assert (done.returncode, found) == (0, []), done
    after = look(shop)
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert [key for key in sorted(changed) if not any(fnmatch(key, lost) for lost in each.lost)] == []
    stores.complete()
    stores.where = where
    for name in os.listdir(shop.root):
        if name.startswith("lost-"):
            os.unlink(shop.root / name)
