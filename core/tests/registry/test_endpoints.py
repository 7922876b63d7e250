import pytest

from cowshed.errors import ConfigError, RegistryError
from cowshed.registry.endpoints import endpoints, is_loopback, itself


def urls(registry, **settings):
    return [e.url + e.path("lib/x", "blobs", "d") for e in endpoints(registry, settings)]


def test_a_registry_alone():
    assert urls("example.org") == ["https://example.org/v2/lib/x/blobs/d"]
    assert urls("docker.io") == ["https://registry-1.docker.io/v2/lib/x/blobs/d"]


@pytest.mark.parametrize("host", ["127.0.0.1:5000", "localhost:5000", "[::1]:5000", "127.8.9.1"])
def test_loopback_is_plain_http(host):
    assert is_loopback(host)
    assert urls(host)[0].startswith("http://")
    assert urls(host, insecure=False)[0].startswith("https://")
    for named in ("ca", "client_cert"):  # who names a certificate means that it is used
        assert urls(host, **{named: "/c.pem"})[0].startswith("https://")


@pytest.mark.parametrize("host", ["127.0.0.1.evil.example", "localhost.evil.example", "example.org:127"])
def test_not_loopback(host):
    assert not is_loopback(host)
    assert urls(host)[0].startswith("https://")


def test_only_what_is_configured_is_plain_http():
    assert urls("example.org", insecure=True) == ["http://example.org/v2/lib/x/blobs/d"]


def test_mirrors_come_first_and_the_registry_last():
    found = urls("docker.io", mirrors=["https://m.example/hub", {"url": "n.example:5000", "insecure": True}])
    assert found == [
        "https://m.example/v2/hub/lib/x/blobs/d?ns=docker.io",
        "http://n.example:5000/v2/lib/x/blobs/d?ns=docker.io",
        "https://registry-1.docker.io/v2/lib/x/blobs/d",
    ]
    assert len(urls("docker.io", mirrors=["https://m.example"], fallback=False)) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"mirors": []},
        {"mirrors": "https://x"},
        {"mirrors": [{"insecure": True}]},
        {"mirrors": ["ftp://x"]},
        {"mirrors": ["https://user:pw@x"]},
        {"mirrors": [{"url": "https://x", "inscure": True}]},
        {"fallback": "no"},
    ],
)
def test_a_wrong_table_is_named(settings):
    with pytest.raises(ConfigError, match=r'registries\."docker\.io"'):
        endpoints("docker.io", settings)


def test_where_it_is_searched():
    assert itself("docker.io", {}, searched=True).host == "index.docker.io"
    assert itself("example.org", {}, searched=True).host == "example.org"


def test_a_blocked_registry():
    with pytest.raises(RegistryError, match="blocks"):
        endpoints("example.org", {"blocked": True})
