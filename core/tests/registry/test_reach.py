"""What one command says of the registry that it names: credentials, certificates, whether TLS is verified."""

import base64
import json
import shutil

import pytest
from cowshed_testing.fake_registry import FakeRegistry, send

from cowshed.errors import AuthError, ConfigError, RegistryError
from cowshed.registry import certificates as certificates_of
from cowshed.registry import login
from cowshed.registry.client import Client
from cowshed.registry.credentials import Credentials
from cowshed.registry.reach import Reach
from cowshed.registry.repository import PUSH, Repository, catalog

ANY, STRICT = Reach(tls_verify=False), Reach(tls_verify=True)
ME = Credentials("me", "s3cret")
BASIC = "Basic " + base64.b64encode(b"me:s3cret").decode()


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """None of this machine's certificates."""
    monkeypatch.setattr(certificates_of, "FOLDERS", [str(tmp_path / "none")])


@pytest.fixture
def tls(certificates):
    with FakeRegistry(certificates.server()) as it:
        it.put("latest", {})
        yield it


def asked(fake, reach, wanted="latest", **settings):
    with Client(fake.address, "a/b", settings, pause=0.01, reach=reach) as it:
        return it.manifest(wanted)[0]


def guard(fake, wanted=BASIC):
    def answer(request, handler):
        if request.authorization == wanted:
            return False
        send(handler, 401, b"", {"WWW-Authenticate": "Basic realm=x"})
        return True

    fake.put("latest", {})
    fake.answer = answer


# ------------------------------------------------------------ TLS


@pytest.mark.parametrize("settings", [{}, {"insecure": False}, {"insecure": True}])
def test_any_certificate_and_none_will_do(fake, tls, settings):
    """Whatever is configured: TLS is tried first, then plain HTTP."""
    fake.put("latest", {})
    assert asked(tls, ANY, **settings) == b"{}"
    assert asked(fake, ANY, **settings) == b"{}"
    assert len(tls.requests) == len(fake.requests) == 1


def test_the_connection_that_was_tried_is_used(tls):
    ports = []
    tls.answer = lambda r, h: bool(ports.append(h.client_address[1]))
    with Client(tls.address, "a/b", {}, reach=ANY) as it:
        it.manifest("latest")
        it.manifest("latest")
    assert len(set(ports)) == 1


def test_nobody_listens():
    with Client("127.0.0.1:1", "a/b", {}, pause=0.01, reach=ANY) as it, pytest.raises(RegistryError, match="refused"):
        it.manifest("latest")


def test_nothing_but_verified_tls(fake, tls):
    fake.put("latest", {})
    with pytest.raises(RegistryError, match="certificate"):
        asked(tls, STRICT)
    for settings in ({}, {"insecure": True}, {"mirrors": [{"url": f"http://{fake.address}", "insecure": True}]}):
        with pytest.raises(RegistryError):
            asked(fake, STRICT, **settings)
    assert (fake.requests, tls.requests) == ([], [])


def test_a_mirror_is_trusted_no_more(fake, tls):
    """What is said of the registry counts for it alone."""
    fake.put("latest", {"of": "fake"})
    assert b"fake" in asked(fake, ANY, mirrors=[f"https://{tls.address}"])
    assert tls.requests == []


def test_who_it_leads_to_is_verified(fake, tls):
    """An unverified registry does not make another host unverified. (localhost is another one than 127.0.0.1.)"""
    other = f"https://localhost:{tls.port}/elsewhere"
    fake.answer = lambda r, h: send(h, 307, b"", {"Location": other}) or True
    with pytest.raises(RegistryError, match="certificate"):
        asked(fake, ANY)
    assert tls.requests == []


def test_a_token_server_on_the_same_host(tls, certificates):
    with FakeRegistry(certificates.server()) as tokens:
        tokens.answer = lambda r, h: send(h, 200, b'{"token": "T"}') or True
        realm = f'Bearer realm="https://{tokens.address}/token"'
        tls.answer = lambda r, h: (
            r.authorization != "Bearer T" and (send(h, 401, b"", {"WWW-Authenticate": realm}) or True)
        )
        assert asked(tls, Reach(ME, tls_verify=False)) == b"{}"
        assert tokens.requests[0].authorization == BASIC


def test_a_directory_of_certificates(tls, certificates, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(RegistryError, match="certificate"):
        asked(tls, Reach(tls_verify=True, cert_dir=str(folder)))
    shutil.copy(f"{certificates.folder}/ca.crt", folder)
    assert asked(tls, Reach(tls_verify=True, cert_dir=str(folder))) == b"{}"
    with FakeRegistry(certificates.server(client=True)) as mutual:
        mutual.put("latest", {})
        for name in ("client.cert", "client.key"):
            shutil.copy(f"{certificates.folder}/{name}", folder)
        assert asked(mutual, Reach(cert_dir=str(folder)), insecure=False) == b"{}"
        assert asked(mutual, Reach(cert_dir=str(folder), tls_verify=False)) == b"{}"
    with pytest.raises(ConfigError, match="cannot be used"):
        asked(tls, Reach(tls_verify=True, cert_dir=str(tmp_path / "nothing")))


def test_everything_that_asks_a_registry(tls):
    tls.referrers = {}
    with Repository(tls.address, "a/b", {}, actions=PUSH, reach=ANY) as there:
        assert there.put_manifest(b"{}", "x", tag="t").startswith("sha256:")
        assert "t" in list(there.tags())
    tls.answer = lambda r, h: send(h, 200, b'{"repositories": ["a/b"]}') or True
    assert list(catalog(tls.address, {}, reach=ANY)) == ["a/b"]
    assert not login.check(tls.address, {}, ME, ANY)


# ------------------------------------------------------------ credentials


def test_credentials_for_this_time(fake, no_credentials):
    """They are used instead of those that are filed, which stay as they are."""
    filed = {"auths": {fake.address: {"auth": base64.b64encode(b"me:other").decode()}}}
    (no_credentials / "config.json").write_text(json.dumps(filed))
    guard(fake)
    with pytest.raises(AuthError, match="wrong"):
        asked(fake, Reach())
    assert asked(fake, Reach(ME)) == b"{}"
    assert json.loads((no_credentials / "config.json").read_text()) == filed
    with pytest.raises(AuthError, match="wrong") as caught:
        asked(fake, Reach(Credentials("me", "hunter2")))
    assert "hunter2" not in str(caught.value) + repr(Reach(Credentials("me", "hunter2")))


def test_they_are_for_the_registry_alone(fake, other, tls):
    guard(fake)
    guard(other)
    assert asked(fake, Reach(ME), mirrors=[f"http://{other.address}"]) == b"{}"
    elsewhere = {"Location": f"http://{other.address}/x"}

    def answer(request, handler):
        if request.authorization:
            send(handler, 307, b"", elsewhere)
        else:
            send(handler, 401, b"", {"WWW-Authenticate": "Basic realm=x"})
        return True

    fake.answer = answer
    with pytest.raises(RegistryError):
        asked(fake, Reach(ME))
    assert other.requests
    assert {r.authorization for r in other.requests} == {None}


def test_a_stranger_as_token_server_does_not_get_them(fake):
    fake.answer = lambda r, h: (
        send(h, 401, b"", {"WWW-Authenticate": 'Bearer realm="http://token.example.net/t"'}) or True
    )
    with pytest.raises(AuthError, match="not known to belong"):
        asked(fake, Reach(ME))


def test_a_file_of_credentials(fake, no_credentials, tmp_path):
    guard(fake)
    path = str(tmp_path / "auth.json")
    with pytest.raises(AuthError, match="no file of credentials"):
        asked(fake, Reach(authfile=path))
    login.store(fake.address, ME, path)
    assert asked(fake, Reach(authfile=path)) == b"{}"
    with pytest.raises(AuthError, match="login"):
        asked(fake, Reach())
    (tmp_path / "empty.json").write_text("{}")
    login.store(fake.address, ME)
    with pytest.raises(AuthError, match="login"):
        asked(fake, Reach(authfile=str(tmp_path / "empty.json")))
