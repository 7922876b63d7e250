"""Who gets the credentials (CVE-2020-15157, CVE-2024-3727, CVE-2026-48978 and their kin)."""

import base64
import json

import pytest
from cowshed_testing.fake_registry import send

from cowshed.errors import AuthError, RegistryError
from cowshed.registry.authorization import belongs
from cowshed.registry.client import Client


def login(home, account, user="me", password="secret", **more):
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    (home / "config.json").write_text(json.dumps({"auths": {account: {"auth": pair, **more}}}))


BASIC = "Basic " + base64.b64encode(b"me:secret").decode()


def client(fake, **settings):
    return Client(fake.address, "a/b", settings, pause=0.01)


def tokens(fake, realm=None, *, good="T1", lifetime=300):
    """fake wants a bearer token, which it gives itself at /token unless another realm is named."""
    realm = realm or f"http://{fake.address}/token"

    def answer(request, handler):
        if request.path == "/token":
            send(handler, 200, json.dumps({"token": good, "expires_in": lifetime}).encode())
            return True
        if request.authorization != f"Bearer {good}":
            send(handler, 401, b"{}", {"WWW-Authenticate": f'Bearer realm="{realm}",service="s,t",scope="x"'})
            return True
        return False

    fake.answer = answer


def test_anonymous(fake):
    fake.put("latest", {"a": 1})
    with client(fake) as it:
        assert it.manifest("latest")[0] == b'{"a": 1}'
    assert fake.requests[0].authorization is None
    assert "image.index.v1+json" in fake.requests[0].headers["accept"]


def test_basic(fake, no_credentials):
    fake.put("latest", {})

    def answer(request, handler):
        if request.authorization != BASIC:
            send(handler, 401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
            return True
        return False

    fake.answer = answer
    with client(fake) as it, pytest.raises(AuthError, match="login"):
        it.manifest("latest")
    login(no_credentials, fake.address)
    with client(fake) as it:
        it.manifest("latest")
    login(no_credentials, fake.address, password="wrong")
    with client(fake) as it, pytest.raises(AuthError, match="wrong"):
        it.manifest("latest")


def test_an_anonymous_token(fake):
    fake.put("latest", {})
    tokens(fake)
    with client(fake) as it:
        it.manifest("latest")
        it.manifest("latest")
    asked = [r.target for r in fake.requests if r.path == "/token"]
    assert len(asked) == 1, "the token is used again"
    assert "service=s%2Ct" in asked[0]
    assert "scope=repository%3Aa%2Fb%3Apull" in asked[0], "we ask for pulling, whatever the registry says"


def test_a_token_as_oauth2_calls_it(fake):
    fake.put("latest", {})
    tokens(fake)
    inner = fake.answer
    fake.answer = lambda r, h: (send(h, 200, b'{"access_token": "T1"}') or True) if r.path == "/token" else inner(r, h)
    with client(fake) as it:
        it.manifest("latest")
    assert fake.requests[-1].authorization == "Bearer T1"


def test_a_token_for_credentials(fake, no_credentials):
    fake.put("latest", {})
    tokens(fake)
    login(no_credentials, fake.address)
    with client(fake) as it:
        it.manifest("latest")
    assert [r.authorization for r in fake.requests] == [None, BASIC, "Bearer T1"]


def test_a_token_that_ran_out_is_renewed(fake):
    fake.put("latest", {})
    tokens(fake, good="T1")
    with client(fake) as it:
        it.manifest("latest")
        tokens(fake, good="T2")
        it.manifest("latest")


def test_an_identity_token_is_posted(fake, no_credentials):
    fake.put("latest", {})
    tokens(fake)
    login(no_credentials, fake.address, identitytoken="IDENTITY")
    with client(fake) as it:
        it.manifest("latest")
    asked = next(r for r in fake.requests if r.path == "/token")
    assert (asked.method, asked.authorization) == ("POST", None)
    assert b"refresh_token=IDENTITY" in asked.body
    assert b"grant_type=refresh_token" in asked.body


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"token": 1}', b'{"token": "a\\nb"}', b'{"token": "x", "expires_in": {"a": 1}}']
)
def test_a_token_server_that_sends_nonsense(fake, body):
    tokens(fake)
    inner = fake.answer
    fake.answer = lambda r, h: (send(h, 200, body) or True) if r.path == "/token" else inner(r, h)
    with client(fake) as it, pytest.raises(AuthError, match="token"):
        it.manifest("latest")


def test_a_token_server_that_sends_without_end(fake):
    tokens(fake)
    inner = fake.answer
    fake.answer = lambda r, h: (send(h, 200, b"x" * (2 << 20)) or True) if r.path == "/token" else inner(r, h)
    with client(fake) as it, pytest.raises(AuthError):
        it.manifest("latest")


def test_a_token_request_follows_no_redirect(fake, other, no_credentials):
    tokens(fake)
    inner = fake.answer

    def answer(request, handler):
        if request.path == "/token":
            send(handler, 307, b"", {"Location": f"http://{other.address}/token"})
            return True
        return inner(request, handler)

    fake.answer = answer
    login(no_credentials, fake.address)
    with client(fake) as it, pytest.raises(RegistryError, match="redirects"):
        it.manifest("latest")
    assert other.requests == []


@pytest.mark.parametrize(
    "realm",
    [
        "",
        "ftp://x/",
        "//127.0.0.1/token",
        "http://user:pw@127.0.0.1/t",
        "http://169.254.169.254/token",
        "file:///etc/passwd",
    ],
)
def test_realms_that_are_not_asked(fake, no_credentials, realm):
    login(no_credentials, fake.address)
    tokens(fake, realm=realm or " ")
    with client(fake) as it, pytest.raises((AuthError, RegistryError)):
        it.manifest("latest")
    assert all(r.authorization is None for r in fake.requests)


def test_credentials_stay_with_the_registrys_token_server(fake, no_credentials):
    """go-containerregistry #2193: a realm elsewhere must not get them."""
    login(no_credentials, fake.address)
    tokens(fake, realm="http://token.example.net/token")
    with client(fake) as it, pytest.raises(AuthError, match="not known to belong") as caught:
        it.manifest("latest")
    assert "token_servers" in caught.value.remedy


@pytest.mark.parametrize(
    ("server", "registry"),
    [
        ("auth.docker.io", "registry-1.docker.io"), ("gitlab.com", "registry.gitlab.com"), ("ghcr.io", "ghcr.io"),
        ("auth.ghcr.io", "ghcr.io"), ("localhost", "127.0.0.1"), ("login.example.org", "r.example.org"),
    ],
)  # fmt: skip
def test_belongs(server, registry):
    assert belongs(server, registry)


@pytest.mark.parametrize(
    ("server", "registry"),
    [
        ("evil.io", "ghcr.io"), ("evil.co.uk", "acme.co.uk"), ("docker.io.evil.example", "registry-1.docker.io"),
        ("evildocker.io", "registry-1.docker.io"), ("127.0.0.1", "example.org"), ("10.0.0.2", "10.0.0.1"),
        ("localhost", "registry.localhost.example"),
    ],
)  # fmt: skip
def test_does_not_belong(server, registry):
    assert not belongs(server, registry)


def test_a_listed_token_server_belongs():
    assert belongs("sso.other.example", "r.example.org", ["SSO.other.example"])
