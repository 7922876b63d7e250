import base64
import json
import os

import pytest

from cowshed.errors import AuthError
from cowshed.registry.credentials import Credentials, find


def auth(user, password):
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write(home, **config):
    (home / "config.json").write_text(json.dumps(config))


def test_none(no_credentials):
    assert find("example.org", "a") is None


def test_the_longest_prefix_wins(no_credentials):
    write(no_credentials, auths={
        "example.org": auth("all", "1"),
        "example.org/team": auth("team", "2:3"),
        "example.org/team/app": auth("app", "4"),
    })  # fmt: skip
    assert find("example.org", "other/x") == Credentials("all", "1")
    assert find("example.org", "team/x") == Credentials("team", "2:3")
    assert find("example.org", "team/app") == Credentials("app", "4")
    assert find("example.org", "teamwork") == Credentials("all", "1")
    assert find("example.com", "team/app") is None


def test_docker_hub_under_its_old_name(no_credentials):
    write(no_credentials, auths={"https://index.docker.io/v1/": auth("hub", "pw")})
    assert find("docker.io", "library/x") == Credentials("hub", "pw")


def test_identity_token(no_credentials):
    write(no_credentials, auths={"example.org": {**auth("u", ""), "identitytoken": "T"}})
    assert find("example.org", "x") == Credentials("u", "", "T")


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": {"example.org": {"auth": "%%%"}}}'])
def test_a_damaged_file_is_no_missing_file(no_credentials, text):
    (no_credentials / "config.json").write_text(text)
    with pytest.raises(AuthError, match=r"config\.json"):
        find("example.org", "x")


def helper(tmp_path, monkeypatch, script):
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "docker-credential-test"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_helper_is_asked(no_credentials, tmp_path, monkeypatch):
    helper(tmp_path, monkeypatch, """read server; echo "{\\"Username\\": \\"me\\", \\"Secret\\": \\"$1 $server\\"}" """)
    write(no_credentials, credHelpers={"example.org": "test"}, auths={"example.org": auth("no", "no")})
    assert find("example.org", "x") == Credentials("me", "get example.org")
    write(no_credentials, credsStore="test")
    assert find("docker.io", "x") == Credentials("me", "get https://index.docker.io/v1/")


def test_a_helper_with_a_token(no_credentials, tmp_path, monkeypatch):
    helper(tmp_path, monkeypatch, """echo '{"Username": "<token>", "Secret": "T"}' """)
    write(no_credentials, credsStore="test")
    assert find("example.org", "x") == Credentials("", "", "T")


def test_a_helper_that_knows_nothing(no_credentials, tmp_path, monkeypatch):
    helper(tmp_path, monkeypatch, "echo credentials not found in native keychain; exit 1")
    write(no_credentials, credsStore="test")
    assert find("example.org", "x") is None


@pytest.mark.parametrize("script", ["echo 'no bus' >&2; exit 1", "echo nonsense"])
def test_a_helper_that_fails(no_credentials, tmp_path, monkeypatch, script):
    helper(tmp_path, monkeypatch, script)
    write(no_credentials, credsStore="test")
    with pytest.raises(AuthError, match="docker-credential-test"):
        find("example.org", "x")


@pytest.mark.parametrize("name", ["missing", "../../bin/sh", "a b"])
def test_a_helper_that_is_none(no_credentials, name):
    write(no_credentials, credsStore=name)
    with pytest.raises(AuthError):
        find("example.org", "x")


def test_secrets_are_not_shown():
    assert "pw" not in repr(Credentials("me", "pw", "pw"))
