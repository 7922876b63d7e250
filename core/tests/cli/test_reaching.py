"""Options that say how a registry is reached, as the record that the client gets."""

import getpass
import sys

import pytest

from cowshed.cli.parser import Values
from cowshed.cli.reaching import reach
from cowshed.errors import BadUsage
from cowshed.registry.credentials import Credentials
from cowshed.registry.reach import AS_CONFIGURED, Reach


@pytest.mark.parametrize(
    ("said", "side", "expected"),
    [
        ({}, "", AS_CONFIGURED),
        ({"src_creds": "a:b", "dest_tls_verify": True}, "", AS_CONFIGURED),
        ({"creds": "me:a:b"}, "", Reach(Credentials("me", "a:b"))),
        ({"creds": "me:"}, "", Reach(Credentials("me", ""))),
        ({"tls_verify": False, "cert_dir": "/"}, "src", Reach(tls_verify=False, cert_dir="/")),
        ({"tls_verify": False, "src_tls_verify": True}, "src", Reach(tls_verify=True)),
        ({"authfile": "/a", "dest_authfile": "/b"}, "dest", Reach(authfile="/b")),
        ({"authfile": "/a", "dest_authfile": "/b"}, "src", Reach(authfile="/a")),
        ({"authfile": "/a", "src_creds": "me:x"}, "src", Reach(Credentials("me", "x"))),
        ({"src_creds": "me:x", "dest_creds": "you:y"}, "dest", Reach(Credentials("you", "y"))),
    ],
)
def test_what_is_said(said, side, expected):
    assert reach(Values(said), side) == expected


def test_a_password_that_is_left_out_is_asked_for(monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(getpass, "getpass", lambda prompt, stream: "typed")
    assert reach(Values(creds="me")) == Reach(Credentials("me", "typed"))


def test_credentials_are_for_one_registry():
    said = Values(creds="me:x")
    assert reach(said, registries=["a", "a"]).credentials
    with pytest.raises(BadUsage, match="one registry"):
        reach(said, registries=["a", "b"])
    assert reach(Values(tls_verify=False), registries=["a", "b"]) == Reach(tls_verify=False)
