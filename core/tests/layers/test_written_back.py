"""What is written to a layer whose file system goes with its mount, and has no place: before anybody is told that it is
there."""

import errno
import os

import pytest

from cowshed.errors import NoSpace, StoreError
from cowshed.layers.activation import WrittenBack
from cowshed.storage import api
from cowshed.storage.errors import Damaged, LayerId
from cowshed_linux import files

LAYER = api.Layer(LayerId("a" * 32), 1, api.Kind.ACTIVE)


class Pool:
    def __init__(self, free):
        self.free = free

    def health(self):
        if self.free == "unknown":
            raise Damaged("it does not tell")
        return api.Health(1 << 30, self.free, None, None, ())


@pytest.fixture
def written(tmp_path, monkeypatch):
    """WrittenBack on a directory of which syncfs(2) fails with an error, or does not."""
    root = os.open(tmp_path, os.O_PATH)
    synced = []

    def make(free, number=0):
        def syncfs(fd):
            synced.append(os.fstat(fd).st_ino)
            if number:
                raise OSError(number, f"syncfs: {os.strerror(number)}")

        monkeypatch.setattr(files, "syncfs", syncfs)
        return WrittenBack(Pool(free), LAYER, root)

    yield make, synced
    os.close(root)


def test_it_is_written_back_at_the_end(written, tmp_path):
    make, synced = written
    with make(0):
        assert synced == []
    assert synced == [tmp_path.stat().st_ino]


@pytest.mark.parametrize(
    ("number", "free", "told"),
    [
        (errno.ENOSPC, 1 << 30, NoSpace),
        (errno.EDQUOT, None, NoSpace),
        (errno.EIO, 4096, NoSpace),  # of the disk below the pool
        (errno.EIO, 1 << 30, StoreError),
        (errno.EIO, None, StoreError),
        (errno.EIO, "unknown", StoreError),
    ],
)
def test_what_is_lost_is_an_error(written, number, free, told):
    make, _ = written
    before = len(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(told, match="what was written to layer aaaaaaaaaaaa cannot be stored: ") as raised,
        make(free, number),
    ):
        pass
    assert type(raised.value) is told
    assert raised.value.remedy
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_failed_before_stays_the_error(written):
    make, synced = written
    with pytest.raises(KeyError), make(0, errno.EIO):
        raise KeyError
    assert synced == []
