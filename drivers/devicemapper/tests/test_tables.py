"""Tables and status lines, put together by Documentation/admin-guide/device-mapper/thin-provisioning.rst; the tests in
a guest read the real ones."""

import pytest

from cowshed.storage.errors import Damaged
from cowshed_driver_devicemapper import tables

STATUS = "0 14/512 208/16384 - rw discard_passdown error_if_no_space - 1024 "
LVM = "12 145/1024 3021/6400 - rw no_discard_passdown queue_if_no_space - 1024 "


def test_status_of_a_pool():
    status = tables.parse_pool_status(STATUS)
    assert (status.transaction, status.mode) == (0, "rw")
    assert (status.metadata_used, status.metadata_total) == (14, 512)
    assert (status.data_used, status.data_total) == (208, 16384)
    assert (status.discards, status.errors_when_full, status.needs_check) == (True, True, False)


def test_status_of_a_pool_of_lvm():
    status = tables.parse_pool_status(LVM)
    assert (status.transaction, status.discards, status.errors_when_full) == (12, False, False)


@pytest.mark.parametrize(
    ("line", "mode", "needs_check"),
    [
        ("0 14/512 16384/16384 - out_of_data_space discard_passdown error_if_no_space - 1024 ", "out_of_data_space", 0),
        ("3 512/512 20/100 - ro discard_passdown error_if_no_space needs_check 1024 ", "ro", 1),
        ("3 12/512 20/100 7 rw discard_passdown error_if_no_space - ", "rw", 0),  # metadata snapshot held; no watermark
    ],
)
def test_modes_of_a_pool(line, mode, needs_check):
    status = tables.parse_pool_status(line)
    assert (status.mode, status.needs_check) == (mode, bool(needs_check))


def test_a_pool_that_has_failed_says_what_to_do():
    with pytest.raises(Damaged, match="has failed") as raised:
        tables.parse_pool_status("Fail")
    assert "thin_check" in raised.value.remedy


@pytest.mark.parametrize("line", ["", "0", "0 14/512", "x 1/2 3/4 - rw", "0 1/2 3 - rw", "0 1/2 3/4 - sideways", "é"])
def test_what_is_no_status_is_damaged(line):
    with pytest.raises(Damaged):
        tables.parse_pool_status(line)


def test_a_table_is_read_as_it_is_written():
    table = tables.parse_pool_table(tables.pool_parameters("7:0", "7:1"))
    assert (table.metadata, table.data, table.block) == ("7:0", "7:1", 128)
    assert table.features == {"error_if_no_space"}
    assert "skip_block_zeroing" not in table.features, "what lay in a block would be seen by the next layer"


def test_table_of_a_pool_of_lvm():
    table = tables.parse_pool_table("253:0 253:1 1024 6000 2 skip_block_zeroing no_discard_passdown ")
    assert (table.block, table.features) == (1024, {"skip_block_zeroing", "no_discard_passdown"})
    assert tables.parse_pool_table("253:0 253:1 128 0").features == frozenset()


@pytest.mark.parametrize("line", ["", "253:0", "a b c d", "253:0 253:1 x 0", "253:0 253:1 128 0 2 one"])
def test_what_is_no_table_is_damaged(line):
    with pytest.raises(Damaged):
        tables.parse_pool_table(line)


@pytest.mark.parametrize(
    ("text", "size"),
    [("10G", 10 << 30), ("512m", 512 << 20), ("64KiB", 65536), ("1TB", 1 << 40), ("4096", 4096), (" 2 G", 2 << 30)],
)
def test_sizes(text, size):
    assert tables.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "1.5G", "1X", "ten"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError):
        tables.parse_size(text)


@pytest.mark.parametrize("free", [16 << 20, 64 << 20, 1 << 30, 50 << 30, 10 << 40])
def test_a_pool_on_loop_files_fits_in_what_is_free(free):
    data, metadata = tables.loop_sizes(free)
    assert data % 65536 == metadata % 4096 == 0
    assert 2 << 20 <= metadata <= 1 << 30
    assert data + metadata <= free
    assert data <= 100 << 30
    assert metadata * 1000 >= data, "metadata must be a thousandth of the data at least"
