import pytest

from cowshed.errors import ConfigError
from cowshed.registry.proxies import Proxy, proxy_for

ENV = {"HTTPS_PROXY": "http://p.example:3128", "http_proxy": "q.example"}


def test_by_scheme():
    assert proxy_for("https", "a.example", 443, ENV) == Proxy("p.example", 3128)
    assert proxy_for("http", "a.example", 80, ENV) == Proxy("q.example", 80)
    assert proxy_for("http", "a.example", 80, {}) is None
    assert proxy_for("http", "a.example", 80, {"ALL_PROXY": "http://r:1"}) == Proxy("r", 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_is_direct(host):
    assert proxy_for("https", host, 443, ENV) is None


@pytest.mark.parametrize(
    "listed", ["a.example", "example", ".example", "*.example", "*", "x, a.example:443", "10.0.0.0/8 a.example"]
)
def test_exceptions(listed):
    assert proxy_for("https", "a.example", 443, {**ENV, "NO_PROXY": listed}) is None


@pytest.mark.parametrize("listed", ["xa.example", "ample", "a.example:444", "b.a.example"])
def test_no_exceptions(listed):
    assert proxy_for("https", "a.example", 443, {**ENV, "no_proxy": listed}) is not None


def test_networks_are_excepted():
    assert proxy_for("https", "10.1.2.3", 443, {**ENV, "NO_PROXY": "10.0.0.0/8"}) is None
    assert proxy_for("https", "11.1.2.3", 443, {**ENV, "NO_PROXY": "10.0.0.0/8"}) is not None


def test_user_and_password():
    found = proxy_for("https", "a.example", 443, {"https_proxy": "http://u:p%40@p.example:1"})
    assert found is not None
    assert found.authorization == "Basic dTpwQA=="
    assert "dTpwQA" not in repr(found)


@pytest.mark.parametrize("text", ["socks5://p:1", "http://", "http://p:port"])
def test_what_is_no_proxy(text):
    with pytest.raises(ConfigError, match="HTTPS_PROXY"):
        proxy_for("https", "a.example", 443, {"https_proxy": text})


def test_the_password_is_not_shown():
    with pytest.raises(ConfigError) as caught:
        proxy_for("https", "a.example", 443, {"https_proxy": "socks5://u:secret@p:1"})
    assert "secret" not in str(caught.value)
