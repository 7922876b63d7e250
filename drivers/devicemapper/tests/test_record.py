"""What a store keeps on disk, damaged and whole."""

import json
import os

import pytest

from cowshed.storage.errors import Damaged, WrongStore
from cowshed_driver_devicemapper import record
from cowshed_driver_devicemapper.driver import read_device

KNOWN = {
    "kind": "loop", "name": "", "data": "", "metadata": "", "filesystem": "ext4", "uuid": "0" * 32, "sectors": 128,
    "base": 0, "transaction": 3, "quota": True, "ready": True,
}  # fmt: skip


def test_a_record_comes_back_as_it_was_saved(tmp_path):
    assert record.load(str(tmp_path)) is None
    os.mkdir(tmp_path / "pool")
    assert record.load(str(tmp_path)) is None
    record.save(str(tmp_path), record.PoolRecord(**KNOWN))
    found = record.load(str(tmp_path))
    assert {name: getattr(found, name) for name in KNOWN} == KNOWN
    assert os.listdir(tmp_path / "pool") == ["record"]


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\xff\x00", b'{"format": 1}', b"null"])
def test_a_damaged_record_is_told_in_one_line(tmp_path, text):
    os.mkdir(tmp_path / "pool")
    (tmp_path / "pool" / "record").write_bytes(text)
    with pytest.raises(Damaged) as raised:
        record.load(str(tmp_path))
    assert "\n" not in str(raised.value)
    assert raised.value.remedy


@pytest.mark.parametrize("name", list(KNOWN))
def test_every_field_must_be_there_and_of_its_kind(tmp_path, name):
    os.mkdir(tmp_path / "pool")
    for values in ({k: v for k, v in KNOWN.items() if k != name}, {**KNOWN, name: [1]}):
        (tmp_path / "pool" / "record").write_text(json.dumps({"format": 1, **values}))
        with pytest.raises(Damaged, match=name):
            record.load(str(tmp_path))


def test_a_newer_format_is_refused(tmp_path):
    os.mkdir(tmp_path / "pool")
    (tmp_path / "pool" / "record").write_text(json.dumps({"format": 2, **KNOWN}))
    with pytest.raises(WrongStore, match="format 2"):
        record.load(str(tmp_path))


def test_what_a_layer_says_of_its_device(tmp_path):
    assert read_device(str(tmp_path)) is None
    os.mkdir(tmp_path / "thin")
    (tmp_path / "thin" / "device").write_text("17 20480\n")
    found = read_device(str(tmp_path))
    assert (found.thin, found.sectors, found.limited) == (17, 20480, False)
    (tmp_path / "thin" / "device").write_text("17 20480 limited\n")
    assert read_device(str(tmp_path)).limited


@pytest.mark.parametrize("text", [b"", b"17", b"x 1", b"1 x", b"1 2 3", b"1 2 limited 3", b"-1 2", b"\xff\xff"])
def test_what_a_layer_says_may_be_damaged(tmp_path, text):
    os.mkdir(tmp_path / "thin")
    (tmp_path / "thin" / "device").write_bytes(text)
    with pytest.raises(Damaged):
        read_device(str(tmp_path))
