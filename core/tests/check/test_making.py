"""What is damaged is not given up before what takes its place is sure."""

import hashlib
import os
from types import SimpleNamespace

import pytest

from cowshed.check import making
from cowshed.errors import Busy
from cowshed.image.blobs import BlobStore
from cowshed.storage.errors import Damaged, NoSpace


class Layers:
    """Of a driver with 100 bytes free."""

    def __init__(self, folder, *, own, purged=True):
        self.store, self.name = SimpleNamespace(root=str(folder)), "copy"
        self.driver = SimpleNamespace(health=lambda: SimpleNamespace(data_free=100))
        self._own, self._purged = own, purged
        self.erased = False

    def load(self, number):
        return SimpleNamespace(id="a" * 32, number=number)

    def usage(self, layer):
        if self._own < 0:
            raise Damaged("it cannot be read")
        return SimpleNamespace(own=self._own)

    def purge(self, seconds):
        return object() if self._purged else None

    def erase(self, layer):
        self.erased = True
        raise KeyboardInterrupt


@pytest.fixture
def made(tmp_path):
    (tmp_path / "blobs/sha256").mkdir(parents=True)
    (tmp_path / "blobs/partial").mkdir()
    row = SimpleNamespace(id="a" * 32, number=7)

    def make(*, archive=10, **about):
        data = b"x" * archive
        digest = hashlib.sha256(data).hexdigest()
        (tmp_path / "blobs/sha256" / digest).write_bytes(data)
        layers = Layers(tmp_path, **about)
        try:
            making._make(layers, row, f"sha256:{digest}", "sha256:x", "commit")
        except BaseException as error:
            return type(error), layers.erased
        raise AssertionError("it was made")

    return make


@pytest.mark.parametrize("about", [{"own": 101}, {"own": 1, "archive": 101}, {"own": -1, "archive": 101}])
def test_a_layer_is_not_erased_where_the_new_one_cannot_fit(made, about):
    assert made(**about) == (NoSpace, False)


def test_a_layer_is_not_erased_while_another_command_purges(made):
    assert made(own=1, purged=False) == (Busy, False)


@pytest.mark.parametrize("own", [100, -1])
def test_a_layer_is_erased_where_there_is_room(made, own):
    assert made(own=own) == (KeyboardInterrupt, True)


@pytest.mark.parametrize("comes", [False, True])
def test_a_damaged_archive_is_there_until_another_is(tmp_path, comes):
    for name in ("sha256", "partial"):
        (tmp_path / "blobs" / name).mkdir(parents=True)
    blobs, whole = BlobStore(str(tmp_path)), b"whole"
    digest = f"sha256:{hashlib.sha256(whole).hexdigest()}"
    place = tmp_path / "blobs/sha256" / digest[7:]
    place.write_bytes(b"damaged")
    with making._Aside(blobs, digest):
        assert not place.exists()
        assert blobs.prune_partials(limit=0) == 0, "it is taken for what a dead command left"
        if comes:
            place.write_bytes(whole)
    assert place.read_bytes() == (whole if comes else b"damaged")
    assert os.listdir(tmp_path / "blobs/partial") == []
