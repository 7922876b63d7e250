"""Who may do what: htpasswd, tokens of this registry and of another server."""

import base64
import json
import os
import subprocess
import time

import pytest
from cowshed_testing.distribution import MANIFEST, Client, digest, manifest

from cowshed.errors import ConfigError
from cowshed.registry.server import tokens
from cowshed.registry.server.access import Access, Users
from cowshed_linux import password


def basic(user, secret):
    return "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    path = tmp_path_factory.mktemp("users") / "htpasswd"
    path.write_text(
        f"# a comment\n\nalice:{password.make('secret', cost=4)}\nbob:{password.make('pässword', cost=4)}\n"
    )
    return str(path)


def test_passwords():
    made = password.make("secret", cost=4)
    assert made.startswith("$2y$04$")
    assert password.matches("secret", made)
    for wrong in ("Secret", "", "secret\0", "secret "):
        assert not password.matches(wrong, made)
    assert password.matches("a", "$2a$05$abcdefghijklmnopqrstuuWvyuXqVYyMcQ4ACY7zYRZ1m1CaiG8da") is False
    for wrong in ("*0", "", "x", "$2y$", "$9$abc"):
        assert not password.matches("a", wrong)
    for wrong in ("", "a\0b", "x" * 73):
        with pytest.raises(ValueError, match="password"):
            password.make(wrong)


def test_without_credentials_nothing(serving, users):
    ask = serving(access=Access(Users(users), None)).client
    for method, path in (
        ("GET", "/v2/"),
        ("GET", "/v2/_catalog"),
        ("GET", "/v2/a/manifests/x"),
        ("POST", "/v2/a/blobs/uploads/"),
    ):
        answer = ask(method, path, b"" if method == "POST" else None)
        assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
        assert answer["WWW-Authenticate"].startswith("Basic realm=")


@pytest.mark.parametrize(
    "value",
    [basic("alice", "wrong"), basic("eve", "secret"), basic("", ""), "Basic !", "Basic", "Bearer x", "Basic " + "A" * 9,
     basic("alice", "secret\0"), "Basic " + base64.b64encode(b"\xff:\xff").decode()],
)  # fmt: skip
def test_wrong_credentials(serving, users, value):
    ask = serving(access=Access(Users(users), None)).client
    assert ask("GET", "/v2/", Authorization=value).status == 401


def test_right_credentials(serving, users):
    ask = serving(access=Access(Users(users), None)).client
    for _ in range(2):  # computed, then remembered
        assert ask("GET", "/v2/", Authorization=basic("alice", "secret")).status == 200
    assert ask("GET", "/v2/", Authorization=basic("bob", "pässword")).status == 200
    assert ask("POST", "/v2/a/blobs/uploads/", b"", Authorization=basic("alice", "secret")).status == 202


def test_a_changed_file_counts_at_once(serving, tmp_path):
    path = tmp_path / "htpasswd"
    path.write_text(f"alice:{password.make('old', cost=4)}\n")
    ask = serving(access=Access(Users(str(path)), None)).client
    assert ask("GET", "/v2/", Authorization=basic("alice", "old")).status == 200
    (tmp_path / "new").write_text(f"alice:{password.make('new', cost=4)}\n")
    os.rename(tmp_path / "new", path)
    assert ask("GET", "/v2/", Authorization=basic("alice", "old")).status == 401
    assert ask("GET", "/v2/", Authorization=basic("alice", "new")).status == 200
    path.unlink()
    assert ask("GET", "/v2/", Authorization=basic("alice", "new")).status == 200, "between two versions of a file"


@pytest.mark.parametrize("line", ["alice", "alice:{SHA}x", "alice:$apr1$x$y", ":x", "alice:plain"])
def test_files_that_are_refused(tmp_path, line):
    path = tmp_path / "htpasswd"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError, match="bcrypt"):
        Users(str(path))


def test_pulling_without_credentials(bearer):
    ask = bearer.client
    right = token_of(ask, "repository:a:pull,push,delete", Authorization=basic("alice", "secret"))
    found = digest(b"config")
    assert ask("POST", f"/v2/a/blobs/uploads/?digest={found}", b"config", **right).status == 201
    data = manifest(found)
    assert ask("PUT", "/v2/a/manifests/v1", data, Content_Type=MANIFEST, **right).status == 201
    for path in ("/v2/a/manifests/v1", f"/v2/a/blobs/{found}", "/v2/a/tags/list"):
        assert ask("GET", path).status == 200
    assert ask("GET", "/v2/").status == 401, "or clients would never show who they are"
    assert ask("PUT", "/v2/a/manifests/v1", data, Content_Type=MANIFEST).status == 401
    assert ask("DELETE", "/v2/a/manifests/v1").status == 401


@pytest.fixture
def bearer(serving, users):
    key = tokens.Secret(b"k" * 32)
    return serving(access=Access(Users(users), tokens.Tokens(key, service="s", issuer="s"), anonymous=True))


def token_of(ask, scope, **headers):
    answer = ask("GET", f"/token?service=s&scope={scope}", **headers)
    assert answer.status == 200
    assert answer.json["token"] == answer.json["access_token"]
    return {"Authorization": f"Bearer {answer.json['token']}"}


def test_tokens(bearer):
    ask = bearer.client
    refused = ask("POST", "/v2/a/b/blobs/uploads/", b"")
    assert refused.status == 401
    assert refused["WWW-Authenticate"] == (
        f'Bearer realm="http://{bearer.address}/token",service="s",scope="repository:a/b:pull,push"'
    )
    right = token_of(ask, "repository:a/b:pull,push", Authorization=basic("alice", "secret"))
    assert ask("POST", "/v2/a/b/blobs/uploads/", b"", **right).status == 202
    other = ask("POST", "/v2/other/blobs/uploads/", b"", **right)
    assert (other.status, other["WWW-Authenticate"].endswith(',error="insufficient_scope"')) == (401, True)
    assert ask("DELETE", f"/v2/a/b/blobs/{digest(b'')}", **right).status == 401


def test_who_is_nobody_gets_a_token_to_read(bearer):
    right = token_of(bearer.client, "repository:a/b:pull,push")
    assert bearer.client("GET", "/v2/a/b/tags/list", **right).code == "NAME_UNKNOWN"
    assert bearer.client("POST", "/v2/a/b/blobs/uploads/", b"", **right).status == 401


def test_a_password_counts_beside_tokens(bearer):
    ask = bearer.client
    assert ask("POST", "/v2/a/blobs/uploads/", b"", Authorization=basic("alice", "secret")).status == 202
    for wrong in (basic("alice", "x"), basic("", ""), "Basic !", "Digest x"):
        answer = ask("POST", "/v2/a/blobs/uploads/", b"", Authorization=wrong)
        assert (answer.status, answer["WWW-Authenticate"].partition(" ")[0]) == (401, "Bearer")
    assert ask("GET", "/v2/a/tags/list", Authorization=basic("", "")).code == "NAME_UNKNOWN", (
        "who has none, and says so"
    )


def test_tokens_by_oauth2(bearer):
    ask = bearer.client
    form = "grant_type=password&username=alice&password=secret&service=s&scope=repository:a/b:push"
    answer = ask("POST", "/token", form.encode(), Content_Type="application/x-www-form-urlencoded")
    right = {"Authorization": f"Bearer {answer.json['access_token']}"}
    assert ask("POST", "/v2/a/b/blobs/uploads/", b"", **right).status == 202
    assert ask("POST", "/token", form.replace("secret", "x").encode()).status == 401
    assert ask("GET", "/token?scope=repository:a/b:pull", Authorization=basic("alice", "x")).status == 401


def test_a_mount_needs_to_read_where_it_comes_from(bearer):
    ask = bearer.client
    both = token_of(ask, "repository:secret/x:pull,push%20repository:a/b:push", Authorization=basic("alice", "secret"))
    found = digest(b"data")
    assert ask("POST", f"/v2/secret/x/blobs/uploads/?digest={found}", b"data", **both).status == 201
    bearer.registry.access._anonymous = False
    only = token_of(ask, "repository:a/b:push", Authorization=basic("alice", "secret"))
    for query in (f"?mount={found}&from=secret/x", f"?mount={found}"):
        assert ask("POST", f"/v2/a/b/blobs/uploads/{query}", b"", **only).status == 202, "not mounted"
    assert ask("POST", f"/v2/a/b/blobs/uploads/?mount={found}&from=secret/x", b"", **both).status == 201


def test_forged_tokens():
    key = tokens.Secret(b"k" * 32)
    good = tokens.Tokens(key, service="s", issuer="s")
    text = str(good.issue("alice", ["repository:a/b:pull"], everything=True)["token"])
    claims = good.verify(text)
    assert claims is not None
    assert tokens.grants(claims, "a/b", "pull")
    assert not tokens.grants(claims, "a/b", "push")
    head, body, signature = text.split(".")

    def made(changes, header=None, by=key):
        parts = tokens._encode(header or {"alg": "HS256"}) + "." + tokens._encode({**claims, **changes})
        return f"{parts}.{tokens._base64(by.sign(parts.encode()))}"

    assert good.verify(made({})) is not None
    now = time.time()
    for wrong in (
        made({"exp": now - 60}), made({"nbf": now + 60}), made({"exp": None}), made({"exp": "x"}),
        made({"aud": "t"}),
        made({"iss": "t"}), made({}, {"alg": "none"}), made({}, {"alg": "RS256"}),
        made({}, by=tokens.Secret(b"l" * 32)),
        f"{head}.{body}.", f"{head}.{body}", head, "", "..", "x" * 100_000, f"{head}.{body}.{signature}x", "[]." + text,
        f"{head}.{tokens._encode({**claims, 'sub': 'eve'})}.{signature}", "a.b.é",
    ):  # fmt: skip
        assert good.verify(wrong) is None


def test_tokens_of_another_server(tmp_path):
    def openssl(*words, data=None):
        return subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True, input=data).stdout

    openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "key")
    openssl("pkey", "-in", "key", "-pubout", "-out", "public")
    openssl("req", "-x509", "-key", "key", "-subj", "/CN=t", "-days", "2", "-out", "certificate")
    claims = {"aud": ["s"], "exp": time.time() + 60, "access": [{"type": "repository", "name": "a", "actions": ["*"]}]}
    parts = tokens._encode({"alg": "RS256", "kid": "x"}) + "." + tokens._encode(claims)
    signature = openssl("dgst", "-sha256", "-sign", "key", data=parts.encode())
    text = f"{parts}.{tokens._base64(signature)}"
    for name in ("public", "certificate"):
        key = tokens.key_of(str(tmp_path / name))
        verifying = tokens.Tokens(key, service="s", realm="https://tokens.example/")
        assert verifying.verify(text) == claims
        assert not key.verify(parts.encode(), bytes([signature[0] ^ 1]) + signature[1:])
        assert not key.verify(parts.encode() + b" ", signature)
        assert not key.verify(parts.encode(), b"\0" + signature)
        # a token that is signed with the public key as if it were a secret
        data = tokens._encode({"alg": "HS256"}) + "." + parts.partition(".")[2]
        forged = tokens.Secret((tmp_path / name).read_bytes()).sign(data.encode())
        assert verifying.verify(f"{data}.{tokens._base64(forged)}") is None
    with pytest.raises(ConfigError, match="public key"):
        tokens.key_of(str(tmp_path / "key"))


@pytest.mark.parametrize("text", ["short", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_keys_that_are_none(tmp_path, text):
    (tmp_path / "key").write_text(text)
    with pytest.raises(ConfigError):
        tokens.key_of(str(tmp_path / "key"))


def test_the_own_key_is_made_once_and_kept_from_others(tmp_path):
    path = str(tmp_path / "key")
    first = tokens.own_key(path)
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert tokens.own_key(path).verify(b"x", first.sign(b"x"))


def test_the_realm_is_not_what_a_client_wants(bearer):
    client = Client(bearer.address)
    answer = client("GET", "/v2/a/tags/list", Authorization="Bearer x", Host='evil"x')
    assert 'realm="http://localhost/token"' in answer["WWW-Authenticate"]
    client.close()
    assert json.loads(answer.body)["errors"]
