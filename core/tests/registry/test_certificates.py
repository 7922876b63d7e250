"""TLS: authorities and client certificates from settings and from podman's and docker's directories."""

import os
import shutil

import pytest
from cowshed_testing.fake_registry import FakeRegistry, send

from cowshed.errors import ConfigError, CowshedError, RegistryError
from cowshed.registry import certificates as certificates_of
from cowshed.registry.client import Client

SECURE = {"insecure": False}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Where certificates are looked for, instead of this machine's directories."""
    found = [str(tmp_path / "podman"), str(tmp_path / "docker")]
    monkeypatch.setattr(certificates_of, "FOLDERS", found)
    return found


@pytest.fixture
def tls(certificates):
    with FakeRegistry(certificates.server()) as it:
        it.put("latest", {})
        yield it


@pytest.fixture
def mutual(certificates):
    """A registry that wants to see a certificate."""
    with FakeRegistry(certificates.server(client=True)) as it:
        it.put("latest", {})
        yield it


def asked(address, **settings):
    with Client(address, "a/b", {**SECURE, **settings}, pause=0.01) as it:
        return it.manifest("latest")[0]


def place(certificates, folder, address, *names):
    os.makedirs(f"{folder}/{address}")
    for name in names:
        shutil.copy(f"{certificates.folder}/{name}", f"{folder}/{address}/{name}")


def test_an_authority_that_nobody_knows(tls, folders):
    with pytest.raises(RegistryError, match="certificate") as caught:
        asked(tls.address)
    assert f"certs.d/{tls.address}/ca.crt" in caught.value.remedy


def test_an_authority_from_the_settings(tls, folders, certificates):
    assert asked(tls.address, ca=f"{certificates.folder}/ca.crt") == b"{}"


@pytest.mark.parametrize("which", [0, 1])
def test_an_authority_from_a_directory(tls, folders, certificates, which):
    place(certificates, folders[which], tls.address, "ca.crt")
    assert asked(tls.address) == b"{}"


def test_a_client_certificate(mutual, folders, certificates):
    ca = f"{certificates.folder}/ca.crt"
    with pytest.raises(RegistryError):
        asked(mutual.address, ca=ca)
    shown = {"client_cert": f"{certificates.folder}/client.cert", "client_key": f"{certificates.folder}/client.key"}
    assert asked(mutual.address, ca=ca, **shown) == b"{}"


def test_a_client_certificate_from_a_directory(mutual, folders, certificates):
    place(certificates, folders[0], mutual.address, "ca.crt", "client.cert", "client.key")
    assert asked(mutual.address) == b"{}"


def test_nobody_else_is_shown_our_certificate(tls, mutual, folders, certificates):
    """A registry that leads us elsewhere does not learn there who we are."""
    place(certificates, folders[0], tls.address, "ca.crt", "client.cert", "client.key")
    tls.answer = lambda r, h: (
        send(h, 307, b"", {"Location": f"https://{mutual.address}/v2/a/b/manifests/latest"}) or True
    )
    with pytest.raises(RegistryError):
        asked(tls.address)
    assert mutual.requests == []


@pytest.mark.parametrize(("there", "said"), [(["client.cert"], "no key"), (["client.key"], "no certificate")])
def test_half_a_certificate(tls, folders, certificates, there, said):
    place(certificates, folders[0], tls.address, "ca.crt", *there)
    with pytest.raises(ConfigError, match=said):
        asked(tls.address)


@pytest.mark.parametrize("setting", ["ca", "client_cert"])
def test_a_file_that_is_no_certificate(tls, folders, tmp_path, setting):
    (tmp_path / "x").write_text("nonsense")
    with pytest.raises(ConfigError, match="cannot be used"):
        asked(tls.address, **{setting: str(tmp_path / "x")})


def test_an_upload_over_tls(tls, folders, certificates, tmp_path):
    import hashlib

    from cowshed.image.manifest import Descriptor
    from cowshed.registry.repository import PUSH, Repository

    data = os.urandom(300_000)
    (tmp_path / "blob").write_bytes(data)
    blob = Descriptor("sha256:" + hashlib.sha256(data).hexdigest(), len(data), "")
    settings = {**SECURE, "ca": f"{certificates.folder}/ca.crt"}
    with Repository(tls.address, "a/b", settings, actions=PUSH) as there:
        assert there.send(blob, str(tmp_path / "blob")) == "sent"
    assert tls.blobs[blob.digest] == data


def test_nothing_leads_from_tls_to_plain_http(tls, fake, folders, certificates, no_credentials, tmp_path):
    """Neither a redirect, nor a token server, nor the place of an upload, nor the next page of a list."""
    import base64
    import json

    from cowshed.image.manifest import Descriptor
    from cowshed.registry.repository import PUSH, Repository

    pair = base64.b64encode(b"me:secret").decode()
    (no_credentials / "config.json").write_text(json.dumps({"auths": {tls.address: {"auth": pair}}}))
    plain = f"http://{fake.address}"
    settings = {**SECURE, "ca": f"{certificates.folder}/ca.crt"}
    blob = Descriptor("sha256:" + "0" * 64, 3, "")
    answers = {
        "redirect": (307, {"Location": f"{plain}/v2/a/b/manifests/latest"}),
        "realm": (401, {"WWW-Authenticate": f'Bearer realm="{plain}/token"'}),
        "upload": (202, {"Location": f"{plain}/v2/a/b/blobs/uploads/1"}),
        "page": (200, {"Link": f'<{plain}/v2/a/b/tags/list>; rel="next"'}),
    }
    for status, headers in answers.values():

        def answer(request, handler, status=status, headers=headers):
            if request.method == "HEAD":
                return False
            send(handler, status, b"{}", headers)
            return True

        tls.answer = answer
        with Repository(tls.address, "a/b", settings, actions=PUSH, pause=0) as there:
            for ask in (
                lambda there=there: there.manifest("latest"),
                lambda there=there: there.send(blob, lambda at: (b"abc"[at:],)),
                lambda there=there: list(there.tags()),
            ):
                if (status, ask.__code__.co_names[0]) == (200, "manifest"):
                    continue
                with pytest.raises(CowshedError):
                    ask()
    assert fake.requests == []
    assert all(request.authorization is None for request in tls.requests)
