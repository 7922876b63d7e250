"""Credentials that are tried, kept, and forgotten, in files that docker and podman read."""

import base64
import json
import os
import threading

import pytest
from cowshed_testing.fake_registry import send

from cowshed.errors import AuthError, BadUsage
from cowshed.registry import credentials, login
from cowshed.registry.credentials import Credentials

ME = Credentials("me", "s:cret")
PAIR = base64.b64encode(b"me:s:cret").decode()


def basic(fake, wanted=PAIR):
    def answer(request, handler):
        good = request.authorization == f"Basic {wanted}"
        send(handler, 200 if good else 401, b"{}", {} if good else {"WWW-Authenticate": "Basic realm=x"})
        return True

    fake.answer = answer


def test_credentials_are_tried(fake):
    basic(fake)
    assert login.check(fake.address, {}, ME)
    with pytest.raises(AuthError, match="wrong"):
        login.check(fake.address, {}, Credentials("me", "other"))


def test_credentials_are_tried_at_the_token_server(fake):
    def answer(request, handler):
        if request.path == "/token":
            good = request.authorization == f"Basic {PAIR}"
            send(handler, 200 if good else 401, b'{"token": "T"}' if good else b"")
        elif request.authorization == "Bearer T":
            send(handler, 200, b"{}")
        else:
            realm = f'Bearer realm="http://{fake.address}/token",service="s"'
            send(handler, 401, b"", {"WWW-Authenticate": realm})
        return True

    fake.answer = answer
    assert login.check(fake.address, {}, ME)
    assert "scope" not in next(r.query for r in fake.requests if r.path == "/token")
    with pytest.raises(AuthError, match="refuses the credentials"):
        login.check(fake.address, {}, Credentials("me", "other"))


def test_a_registry_that_lets_everybody_in(fake):
    fake.answer = lambda r, h: send(h, 200, b"{}") or True
    assert not login.check(fake.address, {}, ME)


def test_kept_and_found_and_forgotten(no_credentials):
    path = no_credentials / "config.json"
    path.write_text(json.dumps({"auths": {"other.example": {"auth": PAIR}}, "psFormat": "x"}))
    assert login.store("r.example:5000", ME) == str(path)
    assert credentials.find("r.example:5000", "a/b") == ME
    value = json.loads(path.read_text())
    assert value["psFormat"] == "x", "what else stands there stays"
    assert value["auths"]["r.example:5000"] == {"auth": PAIR}
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.listdir(no_credentials) == ["config.json"]
    assert login.erase("r.example:5000")
    assert not login.erase("r.example:5000")
    assert credentials.find("r.example:5000", "a/b") is None
    assert credentials.find("other.example", "a") == ME


def test_the_hub_has_its_old_name(no_credentials):
    login.store("docker.io", ME)
    assert list(json.loads((no_credentials / "config.json").read_text())["auths"]) == ["https://index.docker.io/v1/"]
    assert login.known_accounts() == ["docker.io"]
    assert login.erase("docker.io")


@pytest.mark.parametrize(
    ("text", "account"),
    [
        ("r.example", "r.example"), ("https://R.example:5000/v2/", "r.example:5000"), ("r.example/a/b", "r.example"),
        ("index.docker.io", "docker.io"), ("https://index.docker.io/v1/", "docker.io"), ("[::1]:5000", "[::1]:5000"),
    ],
)  # fmt: skip
def test_what_a_registry_may_be_called(text, account):
    assert login.account_of(text) == account


@pytest.mark.parametrize("text", ["", "a b", "https://", "me@r.example", "r.example:port"])
def test_what_is_no_registry(text):
    with pytest.raises(BadUsage):
        login.account_of(text)


def test_a_link_to_the_file_stays_a_link(no_credentials, tmp_path):
    (tmp_path / "real.json").write_text("{}")
    (no_credentials / "config.json").symlink_to(tmp_path / "real.json")
    login.store("r.example", ME)
    assert (no_credentials / "config.json").is_symlink()
    assert "r.example" in (tmp_path / "real.json").read_text()


def test_many_at_once_lose_nothing(no_credentials):
    names = [f"r{n}.example" for n in range(12)]
    threads = [threading.Thread(target=login.store, args=(name, ME)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(login.known_accounts()) == sorted(names)


def test_podmans_files(tmp_path, monkeypatch):
    """Without a variable that names one: docker's, then podman's of this session, then podman's of the user."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    for folder, user in (("run/containers", "session"), (".config/containers", "user")):
        os.makedirs(tmp_path / folder)
        pair = base64.b64encode(f"{user}:x".encode()).decode()
        (tmp_path / folder / "auth.json").write_text(json.dumps({"auths": {"r.example/team": {"auth": pair}}}))
    assert credentials.find("r.example", "team/app").user == "session"
    assert credentials.find("r.example", "other") is None
    assert login.store("r.example", ME) == str(tmp_path / ".docker/config.json")
    assert os.stat(tmp_path / ".docker").st_mode & 0o777 == 0o700
    assert credentials.find("r.example", "team/app") == ME
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "own.json"))
    assert credentials.find("r.example", "team/app") is None
    assert login.store("r.example", ME) == str(tmp_path / "own.json")


def test_a_helper_is_given_them(no_credentials, tmp_path, monkeypatch):
    program = tmp_path / "docker-credential-test"
    program.write_text(
        f'#!/bin/sh\ncat > {tmp_path}/$1\n[ $1 = get ] && echo \'{{"Username": "u", "Secret": "p"}}\'\nexit 0\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = no_credentials / "config.json"
    path.write_text(json.dumps({"credHelpers": {"r.example": "test"}}))
    assert login.store("r.example", ME) == "docker-credential-test"
    said = json.loads((tmp_path / "store").read_text())
    assert said == {"ServerURL": "r.example", "Username": "me", "Secret": "s:cret"}
    assert json.loads(path.read_text())["auths"] == {"r.example": {}}
    assert "cret" not in path.read_text()
    assert credentials.find("r.example", "a") == Credentials("u", "p")
    assert login.erase("r.example")
    assert (tmp_path / "erase").read_text() == "r.example"


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_file_is_not_written_over(no_credentials, text):
    path = no_credentials / "config.json"
    path.write_text(text)
    with pytest.raises(AuthError, match="cannot be read"):
        login.store("r.example", ME)
    assert path.read_text() == text
