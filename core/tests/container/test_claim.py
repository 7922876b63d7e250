"""A container whose number a conversion switches while another command waits for it."""

from types import SimpleNamespace

import pytest

from cowshed.cli.commands import run
from cowshed.container import lifecycle
from cowshed.state import containers
from cowshed.state.rows import ContainerRow
from cowshed.state.store import open_store


@pytest.fixture
def engine(tmp_path):
    store = open_store(str(tmp_path / "store"), str(tmp_path / "run"))
    yield SimpleNamespace(store=store, reader=store, place=lambda row: str(tmp_path))
    store.close()


@pytest.fixture
def switched(engine):
    """The row as it was read before the switch."""
    row = ContainerRow(7, "a" * 64, "one", None, "", "copy", "exited", 1, {"restart": "always"})
    with engine.store.transaction() as tx:
        containers.insert(tx, row)
    with engine.store.transaction() as tx:
        tx.execute("update containers set number = 8, driver = 'overlay'")
    return row


def test_it_is_claimed_by_what_it_is_now(engine, switched):
    now = lifecycle.claim(engine, switched)
    assert (now.number, now.driver) == (8, "overlay")
    locks = engine.store.locks
    assert [locks.mine("containers", number) for number in (7, 8)] == [False, True]


def test_one_that_is_gone_is_not_claimed(engine, switched):
    with engine.store.transaction() as tx:
        containers.delete(tx, 8)
    assert lifecycle.claim(engine, switched) is None
    assert not any(engine.store.locks.mine("containers", number) for number in (7, 8))


def test_it_is_restarted_by_its_policy(engine, switched, monkeypatch):
    now = SimpleNamespace(exit_code=1, finished=2)
    monkeypatch.setattr(run.lifecycle, "ended", lambda *_: None)
    monkeypatch.setattr(run.state, "now", lambda *_: now)
    assert run._restart_wanted(engine, switched)
    with engine.store.transaction() as tx:
        containers.delete(tx, 8)
    assert not run._restart_wanted(engine, switched)
