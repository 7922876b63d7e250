"""What the kernel refuses for a moment, and what it refuses for good."""

import errno
from types import SimpleNamespace

import pytest

from cowshed.storage.errors import InUse, WrongStore
from cowshed_driver_devicemapper import pool as pools
from cowshed_driver_devicemapper import record
from cowshed_driver_devicemapper.libdevmapper import Info, Target


@pytest.fixture
def busy(tmp_path):
    """A pool whose kernel says EBUSY so many times before it deletes."""

    def make(times):
        def message(pool, text):
            sent.append((pool, text))
            if len(sent) <= times:
                raise OSError(errno.EBUSY, "busy")

        sent = []
        known = SimpleNamespace(kind=record.GIVEN, name="pool", base=0, uuid="0" * 36)
        host = SimpleNamespace(call=lambda what, do: do())
        return pools.Pool(str(tmp_path), known, SimpleNamespace(message=message), host), sent

    return make


def test_a_device_whose_removal_has_begun_is_deleted_when_it_is_done(busy):
    pool, sent = busy(2)
    pool.delete(7)
    assert sent == [("pool", "delete 7")] * 3


def test_a_device_in_use_is_not_waited_for_without_end(busy, monkeypatch):
    monkeypatch.setattr(pools, "_PATIENCE", 0.05)
    pool, sent = busy(10**6)
    with pytest.raises(InUse, match="thin device 7 of pool pool"):
        pool.delete(7)
    assert len(sent) > 1


def test_a_device_gets_another_table_only_to_grow(tmp_path):
    loaded = []
    tables = {"large": [Target(0, 4096, "thin", "253:0 7")], "gone": []}
    mapper = SimpleNamespace(
        info=lambda name: Info(253, 0),
        table=tables.__getitem__,
        load=lambda name, target: loaded.append((name, target)),
    )
    known = SimpleNamespace(kind=record.GIVEN, name="pool", base=0, uuid="0" * 36)
    pool = pools.Pool(str(tmp_path), known, mapper, SimpleNamespace(call=lambda what, do: do()))
    pool.extend("large", 7, 4096)
    assert loaded == []
    pool.extend("large", 7, 8192)
    assert [(name, t.length, t.kind, t.parameters) for name, t in loaded] == [("large", 8192, "thin", "253:0 7")]
    with pytest.raises(WrongStore):
        pool.extend("gone", 7, 8192)
