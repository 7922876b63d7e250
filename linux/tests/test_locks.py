"""Byte locks of open files."""

import os

from cowshed_linux import locks


def test_the_first_byte_that_another_holds_is_found_wherever_it_is(tmp_path):
    one, two = (locks.open_file(str(tmp_path / "file")) for _ in range(2))
    try:
        assert locks.first_locked(one) is None
        assert locks.lock_byte(two, (1 << 48) + 5, shared=True)
        assert locks.first_locked(one) == (1 << 48) + 5
        assert locks.first_locked(two) is None, "its own is not another's"
        assert locks.lock_byte(two, 7)
        assert locks.first_locked(one) == 7
    finally:
        os.close(one)
        os.close(two)
    with open(tmp_path / "file", "r+b") as file:
        assert locks.first_locked(file.fileno()) is None
