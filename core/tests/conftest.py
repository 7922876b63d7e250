"""What tests of images and of registries share."""

import pytest
from cowshed_testing.certificates import Certificates
from cowshed_testing.command import COMMAND
from cowshed_testing.fake_registry import FakeRegistry
from cowshed_testing.registry import Ours, Registry


@pytest.fixture
def no_credentials(tmp_path, monkeypatch):
    """Neither the user's credentials nor their proxies."""
    home = tmp_path / "docker"
    home.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(home))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
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
    """A second server, to be led to."""
    with FakeRegistry() as it:
        yield it


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    with Registry(str(tmp_path_factory.mktemp("registry"))) as it:
        yield it


@pytest.fixture(scope="session")
def ours(tmp_path_factory):
    with Ours(COMMAND, str(tmp_path_factory.mktemp("ours"))) as it:
        yield it


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """An authority of our own, and what it has signed."""
    return Certificates(str(tmp_path_factory.mktemp("certificates")))
