"""Records beside the database when the command that changes a row is killed."""

import os

import pytest

from cowshed.state import images, records
from cowshed.state.rows import ImageRow
from cowshed.state.store import open_store

ID = "sha256:" + "1" * 64
KEY = ("images", ID)


@pytest.fixture
def store(tmp_path):
    it = open_store(str(tmp_path / "root"), str(tmp_path / "run"))
    with it.transaction() as tx:
        images.insert(tx, ImageRow(ID, ID, b"{}", "media", b"{}", (), (), (), "linux/amd64", 0, 0, 0))
    yield it
    it.close()


def killed(store, do, at):
    """A transaction of a process that is killed before, or just after, it is made durable."""
    pid = os.fork()
    if pid == 0:
        try:
            mine = open_store(store.root, os.path.dirname(store.run))
            if at == "after":
                records.refresh = lambda *_: os._exit(9)
            else:
                announce = records.announce
                records.announce = lambda *words: (announce(*words), os._exit(9))
            with mine.transaction() as tx:
                do(tx)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def said(store):
    return records.read(records.path(store.root, *KEY))


@pytest.mark.parametrize("at", ["before", "after"])
def test_the_next_command_writes_what_a_killed_one_did_not_come_to(store, at):
    killed(store, lambda tx: images.tag(tx, "test/one:latest", ID), at)
    assert len(store.unrecorded()) == 1
    records.recover(store)
    assert said(store)["names"] == ([] if at == "before" else ["test/one:latest"])
    assert store.unrecorded() == []


@pytest.mark.parametrize("at", ["before", "after"])
def test_a_record_never_tells_of_an_image_that_was_removed(store, at):
    killed(store, lambda tx: images.delete(tx, ID), at)
    assert said(store) is None
    records.recover(store)
    assert (said(store) is None) == (images.exact(store, ID) is None) == (at == "after")
    assert store.unrecorded() == []


def test_the_note_of_a_living_command_is_left(store):
    note = records.announce(store, {KEY})
    records.recover(store)
    assert os.path.exists(note)
    records.refresh(store, {KEY}, note)
    assert store.unrecorded() == []
