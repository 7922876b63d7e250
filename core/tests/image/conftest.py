import os

import pytest
from cowshed_testing.command import Cowshed
from cowshed_testing.store import Store


@pytest.fixture(autouse=True)
def alone(no_credentials):
    """Every test here."""


@pytest.fixture
def store(tmp_path):
    it = Store(tmp_path)
    yield it
    assert list(it.layers.check()) == []
    it.close()


@pytest.fixture
def make_store(tmp_path):
    """Stores with other drivers or in other places; closed at the end."""
    made = []

    def make(name, driver="overlay"):
        made.append(Store(f"{tmp_path}/{name}", driver))
        return made[-1]

    os.makedirs(f"{tmp_path}/more")
    yield make
    for it in made:
        it.close()


@pytest.fixture
def cowshed(tmp_path):
    """The command, with a store of its own."""
    return Cowshed(tmp_path)
