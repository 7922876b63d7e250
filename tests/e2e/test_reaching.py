"""--creds, --authfile, --tls-verify and --cert-dir from outside, on every command that asks a registry: our own, with
TLS that nobody knows and users."""

import json
import shutil
import subprocess
import threading

import pytest
from cowshed_testing.certificates import Certificates
from cowshed_testing.fake_registry import FakeRegistry, send
from cowshed_testing.registry import Ours

from .conftest import COMMAND, Engine

ME = ("--creds", "alice:s3cret")
ANY = "--tls-verify=false"


@pytest.fixture
def driver():
    """One is enough: nothing here is about them."""
    return "overlay"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Certificates, `users`, and `trusted`: a directory with nothing but the authority."""
    folder = tmp_path_factory.mktemp("reaching")
    it = Certificates(str(folder))
    it.trusted = str(folder / "trusted")
    (folder / "trusted").mkdir()
    shutil.copy(folder / "ca.crt", it.trusted)
    it.users = str(folder / "users")
    subprocess.run([COMMAND, "registry", "user", it.users, "alice"], input=b"s3cret\n", check=True)
    return it


@pytest.fixture(scope="module")
def guarded(made, tmp_path_factory):
    """A registry with TLS and a user."""
    options = ("--tls-certificate", f"{made.folder}/server.crt", "--tls-key", f"{made.folder}/server.key")
    with Ours(COMMAND, str(tmp_path_factory.mktemp("guarded")), "--htpasswd", made.users, *options) as it:
        yield it


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, greeting):
    """A store that has the image, under another name too."""
    it = Engine(tmp_path_factory.mktemp("shelf"), "overlay")
    it.ok("pull", "-q", greeting)
    yield it
    it.close()
    it.assert_clean()


def said(engine, *words):
    """What a command says that fails."""
    done = engine(*words)
    assert done.returncode == 125, (words, done)
    assert b"s3cret" not in done.stdout + done.stderr
    return done.stderr.decode().splitlines()[-1]


def test_every_command(engine, shelf, made, guarded, greeting, greeting_image, tmp_path):
    """Each with credentials and any certificate; some with a file, and with the directory of the authority."""
    name, tools = f"{guarded.address}/team/app", ("--tls-verify", "--cert-dir", made.trusted)
    shelf.ok("tag", greeting, name)
    assert "certificate" in said(shelf, "push", *ME, "--tls-verify", name)
    assert "let us push" in said(shelf, "push", ANY, name)
    assert greeting_image.digest in shelf.ok("push", *ME, ANY, name)
    authfile = str(tmp_path / "auth.json")
    assert "certificate" in said(engine, "login", "--tls-verify", "-u", "alice", "-p", "x", guarded.address)
    assert "wrong" in said(engine, "login", ANY, "-u", "alice", "-p", "x", guarded.address)
    words = ("--authfile", authfile, *tools, "-u", "alice", "--password-stdin", guarded.address)
    engine.ok("login", *words, feed=b"s3cret\n")
    filed = ("--authfile", authfile, *tools)
    reach = (*ME, ANY)
    assert engine.ok("registry", "tags", *reach, name) == "latest\n"
    assert engine.ok("registry", "catalog", *reach, guarded.address) == "team/app\n"
    assert engine.ok("search", *reach, "--format", "{{.Name}}", f"{guarded.address}/app") == f"{name}\n"
    assert engine.ok("search", *reach, "--list-tags", "--format", "{{.Tag}}", name) == "latest\n"
    assert engine.ok("registry", "referrers", *reach, "--format", "{{.Digest}}", name) == ""
    assert json.loads(engine.ok("manifest", "inspect", *reach, name)) == json.loads(greeting_image.manifest)
    subprocess.run(["openssl", "pkey", "-in", f"{made.folder}/ca.key", "-pubout", "-out", tmp_path / "key"], check=True)
    assert "no signature" in said(engine, "image", "verify", "--remote", "-k", str(tmp_path / "key"), *reach, name)
    assert engine.ok("pull", "-q", *reach, name) == f"{name}:latest\n"
    assert engine.ok("run", "--rm", "--pull", "always", "-q", *reach, name, "cat", "/srv/three") == "three\n"
    engine.ok("create", "--name", "box", "--pull", "always", *reach, name)
    engine.ok("rm", "box")
    engine.ok("rmi", name)
    engine.ok("manifest", "create", "some")
    engine.ok("manifest", "add", "some", name, *reach)
    engine.ok("manifest", "push", "-q", *reach, "some", f"{name}:list")
    engine.ok("manifest", "rm", "some")
    engine.ok("registry", "delete", "-f", *reach, f"{name}:list")
    sides = [f"--{side}{word.removeprefix('-')}" if word.startswith("--") else word
             for side in ("src", "dest") for word in reach]  # fmt: skip
    there = f"docker://{name}:latest"
    assert engine.ok("image", "copy", "-q", *sides, there, f"docker://{name}:copy") == f"{greeting_image.digest}\n"
    engine.ok("registry", "delete", "-f", *reach, f"{name}:copy")
    for reach in (filed, (*ME, *tools)):
        assert engine.ok("registry", "tags", *reach, name) == "latest\n"
        assert engine.ok("pull", "-q", *reach, name) == f"{name}:latest\n"
    engine.ok("image", "copy", "-q", *filed, f"docker://{name}:latest", f"oci:{tmp_path}/layout:x")
    assert "let us pull" in said(engine, "pull", ANY, name)
    assert engine.ok("logout", "--authfile", authfile, guarded.address).startswith("Removing")
    assert "login" in said(engine, "pull", *filed, name)
    assert guarded.process.poll() is None


def test_each_side_of_a_copy_has_its_own(engine, made, guarded, registry, greeting, greeting_image):
    """Credentials of one side are not shown to the other."""
    target = f"docker://{guarded.address}/copied:1"
    assert "let us push" in said(
        engine, "image", "copy", "--src-creds", "alice:s3cret", ANY, f"docker://{greeting}", target
    )
    engine.ok(
        "image", "copy", "-q", "--dest-creds", "alice:s3cret", "--dest-tls-verify=false", f"docker://{greeting}", target
    )
    options = ("--src-creds", "alice:s3cret", "--src-cert-dir", made.trusted, "--src-tls-verify")
    assert engine.ok("image", "copy", "-q", *options, target, f"docker://{registry.address}/copied:1") == (
        f"{greeting_image.digest}\n"
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["pull", "--creds", ":s3cret"], "no user name"),
        (["pull", "--creds", "alice"], "no terminal to ask"),
        (["pull", *ME, "--authfile", "/none"], "exclude each other"),
        (["pull", ANY, "--authfile", "/none/s"], "no file of credentials"),
        (["pull", "--cert-dir", "/none/s"], "no directory"),
        (["pull", "--tls-verify=perhaps"], "true or false"),
        (["registry", "delete", "-f", *ME, "127.0.0.1:2/a:1"], "for one registry"),
    ],
)
def test_what_cannot_be_meant(engine, guarded, words, text):
    assert text in said(engine, *words, f"{guarded.address}/team/app:1")


@pytest.mark.parametrize(
    "words",
    [
        ["pull", "--creds", "alice:s3cret", "NAME"], ["run", "--creds=alice:s3cret", "--pull", "always", "NAME"],
        ["login", "-u", "alice", "-ps3cret", "HOST"], ["image", "copy", "--src-creds", "alice:s3cret", "FROM", "dir:x"],
    ],
)  # fmt: skip
def test_a_password_does_not_stay_in_the_list_of_processes(engine, words):
    """While the registry is asked, and in all processes that the command has begun."""
    seen, reading = [], threading.Event()

    def answer(request, handler):
        assert reading.wait(60)
        with open(f"/proc/{process.pid}/cmdline", "rb") as file:
            seen.append(file.read())
        send(handler, 404)
        return True

    with FakeRegistry() as fake:
        fake.answer = answer
        names = {"NAME": f"{fake.address}/a/b", "HOST": fake.address, "FROM": f"docker://{fake.address}/a/b"}
        words = [names.get(word, word) for word in words]
        process = engine.spawn("--debug", *words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        reading.set()
        told, _ = process.communicate(timeout=60)
    assert seen
    assert all(fake.address.encode() in each and b"s3cret" not in each for each in seen)
    assert b"s3cret" not in told
