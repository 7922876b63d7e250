import os

import pytest
from cowshed_testing.fake_registry import FakeRegistry
from cowshed_testing.registry import Registry
from cowshed_testing.store import Store


@pytest.fixture(autouse=True)
def no_credentials(tmp_path, monkeypatch):
    """Neither the user's credentials nor their proxies."""
    home = tmp_path / "docker"
    home.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(home))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return home


@pytest.fixture
def fake():
    with FakeRegistry() as it:
        yield it


@pytest.fixture
def other():
    with FakeRegistry() as it:
        yield it


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    with Registry(str(tmp_path_factory.mktemp("registry"))) as it:
        yield it


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
