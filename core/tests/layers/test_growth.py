"""What a command costs must not grow with what the store has: every query goes by an index."""

import importlib.util
import re
from pathlib import Path

import pytest

from cowshed.state import containers, images, volumes
from cowshed.state.rows import ContainerRow, VolumeRow
from cowshed.state.store import Store

spec = importlib.util.spec_from_file_location("layers_work", Path(__file__).parent / "work.py")
work = importlib.util.module_from_spec(spec)
spec.loader.exec_module(work)

# Tables that are as long as the store is old; the others have a row for what is unfinished, or for a driver.
LONG = ("layers", "containers", "images", "chains", "tags", "image_blobs", "volumes", "volume_users")


@pytest.fixture
def said(monkeypatch):
    """Every statement that goes to the database, once each."""
    statements = {}
    real = Store.query

    def query(self, sql, *parameters):
        statements[sql] = parameters
        return real(self, sql, *parameters)

    monkeypatch.setattr(Store, "query", query)
    return statements


def scans(store, sql, parameters):
    """The long tables that a statement reads from end to end, and what it sorts."""
    plan = [row[3] for row in store._db.execute(f"explain query plan {sql}", parameters)]
    found = []
    for line in plan:
        match = re.match(r"SCAN (\w+)", line)
        if match and (match[1] in LONG or match[1] in ("l", "child", "other")):
            found.append(f"{line}: {sql}")
    return found


def test_no_statement_of_a_command_reads_a_whole_table(tmp_path, said):
    layers = work.opened(str(tmp_path / "store"), "overlay")
    store = layers.store
    image = work.pull(layers)
    with store.transaction() as tx:
        images.tag(tx, "localhost/a:1", image.id)
    work.remove(layers, work.create(layers, image))
    with store.transaction() as tx:
        row = ContainerRow(90, "a" * 64, "one", image.id, "a", "overlay", "created", 1, {})
        containers.insert(tx, row)
        volumes.insert(tx, VolumeRow("v", 1, True, {}))
        volumes.use(tx, "v", 90)
        containers.update(tx, 90, state="exited")
    for name in ("one", "a" * 64, "aaaa"):
        assert containers.find(store, name).number == 90
    assert containers.of_image(store, image.id)
    assert images.by_name(store, "localhost/a:1")
    assert images.by_digest(store, image.manifest_digest)
    assert images.by_id(store, image.id)
    assert images.names(store, image.id)
    with store.transaction() as tx:
        volumes.delete_anonymous(tx, 90)
        containers.delete(tx, 90)
        images.untag(tx, "localhost/a:1")
    work.commit(layers, image)
    work.rmi(layers, image)
    work.recover(layers)
    assert len(said) > 40
    assert [scan for sql, parameters in said.items() if not sql.startswith(("begin", "commit", "rollback", "pragma"))
            for scan in scans(store, sql, parameters)] == []  # fmt: skip
    store.close()


def test_the_triggers_read_no_whole_table(tmp_path):
    """EXPLAIN QUERY PLAN of a statement shows what its triggers do as well, but not by name: so each is asked."""
    store = work.opened(str(tmp_path / "store"), "overlay").store
    bodies = [sql for (sql,) in store.query("select sql from sqlite_master where type = 'trigger'")]
    assert len(bodies) >= 6
    for sql in bodies:
        body = re.search(r"begin\s+(.*?);\s*end", sql, re.S)[1]
        asked = re.sub(r"\b(old|new)\.\w+", "?", body)
        assert scans(store, asked, [1] * asked.count("?")) == []
    store.close()


def test_a_purge_does_not_look_at_layers(tmp_path, monkeypatch):
    layers = work.opened(str(tmp_path / "store"), "overlay")
    image = work.pull(layers)
    work.remove(layers, work.create(layers, image))
    seen = []
    import os

    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path=".": (seen.append(str(path)), real(path))[1])
    layers.purge(10)
    assert [path for path in seen if path.endswith(("/active", "/committed"))] == []
    assert any(path.endswith("/trash") for path in seen)
    layers.store.close()
