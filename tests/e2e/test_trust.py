"""Policies of accepted images from outside: what is not accepted is neither pulled nor run, today's policy counts for
what was pulled yesterday, and other programs that sign and verify agree."""

import json
import os
import select
import subprocess

import pytest
from cowshed_testing.images import Image, LayerTar
from cowshed_testing.registry import Ours
from cowshed_testing.signing import Signer, requirement, upload

from .conftest import COMMAND, TOP

# Debian sid's cosign and skopeo, where tools/unpack puts them; bookworm's skopeo does not verify.
THERE = TOP / "build/signing/usr"
LIBRARIES = THERE / "lib/x86_64-linux-gnu"
MISSING = "cosign and skopeo are not there: tools/unpack --release sid build/signing cosign skopeo"
REJECT, ACCEPT = {"type": "reject"}, {"type": "insecureAcceptAnything"}


@pytest.fixture
def driver():
    """One is enough: nothing here is about them."""
    return "overlay"


@pytest.fixture
def ours(tmp_path):
    with Ours(COMMAND, str(tmp_path / "registry")) as it:
        yield it


@pytest.fixture
def signer(tmp_path):
    it = Signer()
    (tmp_path / "k.pub").write_bytes(it.public)
    return it


@pytest.fixture
def policy(engine, tmp_path):
    """Writes the policy that is in force: by scope; everything else is rejected."""
    (tmp_path / "config.toml").write_text(f'[trust]\npolicy = "{tmp_path}/policy.json"\n')
    engine.env["COWSHED_CONFIG"] = str(tmp_path / "config.toml")

    def write(scopes, local=REJECT):
        value = {"default": [REJECT], "transports": {"docker": scopes, "cowshed": {"": [local]}}}
        (tmp_path / "policy.json").write_text(json.dumps(value))

    return write


def refused(engine, *words):
    """What a command says that is refused."""
    done = engine(*words)
    assert done.returncode == 125, (words, done)
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("cowshed: "), done.stderr
    return last


def test_only_what_is_signed_runs(engine, policy, ours, signer, greeting_image, tmp_path):
    name = ours.push(greeting_image, "team/app", "1")
    scopes = {f"{ours.address}/team": [requirement(f"{tmp_path}/k.pub")]}
    policy(scopes)
    for words in (("pull", name), ("run", "--rm", name, "true"), ("create", name, "true"),
                  ("image", "copy", f"docker://{name}", "cowshed:x")):  # fmt: skip
        assert "is not accepted: it has no signature" in refused(engine, *words)
    for words in (("pull", "127.0.0.1:1/app"), ("image", "copy", "docker://127.0.0.1:1/app", "cowshed:x")):
        assert "it is rejected" in refused(engine, *words)  # nobody is asked
    assert engine.ok("images", "-q") == ""
    upload(name, signature=signer.simple(greeting_image.digest, f"{ours.address}/team/app"))
    engine.ok("image", "copy", f"docker://{name}", "cowshed:x")
    assert engine.ok("run", "--rm", "x", "cat", "/srv/three") == "three\n"
    engine.ok("pull", name)
    ours.close()  # from here on nobody can be asked
    assert engine.ok("run", "--rm", name, "cat", "/srv/three") == "three\n"
    engine.ok("create", "--name", "box", name, "true")
    (tmp_path / "k.pub").write_bytes(Signer().public)
    for words in (("run", "--rm", name, "true"), ("run", "--rm", "x", "true"), ("create", name, "true"),
                  ("start", "box")):  # fmt: skip
        assert "a signature is not of the key that is asked for" in refused(engine, *words)
    (tmp_path / "k.pub").write_bytes(signer.public)
    assert engine.ok("start", "-a", "box") == ""
    assert engine.ok("commit", "box", "mine").startswith("sha256:")
    assert "it is rejected (scope of all of cowshed" in refused(engine, "run", "--rm", "mine", "true")
    policy(scopes, local=ACCEPT)
    engine.ok("run", "--rm", "mine", "true")


def test_a_policy_that_is_broken_stops_what_needs_one_and_nothing_else(engine, policy, greeting, tmp_path):
    policy({"127.0.0.1": [ACCEPT], "": [ACCEPT]})
    engine.ok("create", "--name", "box", greeting, "true")
    for broken in ("", "{", '{"default": []}', '{"default": [{"type": "signed"}]}', None):
        (tmp_path / "policy.json").unlink()
        if broken is not None:
            (tmp_path / "policy.json").write_text(broken)
        else:
            (tmp_path / "policy.json").mkdir()
        words = f"no image is accepted, because of the policy file {tmp_path}/policy.json: "
        for each in (("pull", greeting), ("run", greeting), ("start", "box"), ("image", "verify", greeting)):
            assert words in refused(engine, *each)
    assert words in engine("config", "check").stderr.decode()
    assert "box" in engine.ok("ps", "-a")
    assert engine.ok("images", "-q") != ""
    engine.ok("rm", "box")


def test_a_restart_policy_heeds_the_policy_of_images(engine, policy, greeting):
    """Its command has no terminal to tell it which configuration was meant."""
    policy({"127.0.0.1": [ACCEPT], "": [ACCEPT]})
    id_ = engine.ok("run", "-d", "--restart", "always", greeting, "sleep", "1000").strip()
    pid = int(engine.ok("inspect", "-f", "{{.State.Pid}}", id_))
    with open(f"/proc/{pid}/stat") as stat:
        monitor = os.pidfd_open(int(stat.read().rpartition(")")[2].split()[1]))
    policy({})
    os.kill(pid, 9)
    select.select([monitor], [], [])  # it becomes the command that starts the container again
    os.close(monitor)
    assert engine.ok("inspect", "-f", "{{.State.Running}} {{.RestartCount}}", id_) == "false 0\n"
    policy({"": [ACCEPT]})
    engine.ok("start", id_)
    engine.ok("rm", "-f", id_)


def test_image_verify(engine, policy, ours, signer, tmp_path):
    source = Image([LayerTar().file("a", "b").bytes()], {})
    name = ours.push(source, "team/app", "1")
    policy({ours.address: [requirement(f"{tmp_path}/k.pub")]})
    assert "it has no signature" in refused(engine, "image", "verify", name)
    upload(name, bundle=signer.bundle(source.digest))
    assert "a signature is for no name, which matchRepository does not take" in refused(engine, "image", "verify", name)
    assert "bundle" in engine.ok("image", "verify", "--key", f"{tmp_path}/k.pub", name)
    upload(name, signature=signer.simple(source.digest, name))
    assert f"{name} is accepted: scope {ours.address} of docker, {tmp_path}/policy.json" in engine.ok(
        "image", "verify", name
    )
    assert engine.ok("images", "-q") == ""  # nothing was brought
    engine.ok("pull", "-q", name)
    ours.close()
    (row,) = map(json.loads, engine.ok("image", "verify", "--format", "json", name).splitlines())
    assert row == {"Digest": source.digest, "Form": "simple", "Identity": name, "Key": f"{tmp_path}/k.pub"}
    both = engine.ok("image", "verify", "--key", f"{tmp_path}/k.pub", "--format", "{{.Form}}", name)
    assert sorted(both.split()) == ["bundle", "simple"]
    assert engine.ok("image", "verify", "-q", name) == ""
    (tmp_path / "second.pub").write_bytes(Signer("rsa").public)
    assert "is not signed by a key that is named" in refused(
        engine, "image", "verify", "--key", f"{tmp_path}/second.pub", name
    )
    assert "/no.pub cannot be read" in refused(engine, "image", "verify", "--key", "/no.pub", f"{ours.address}/none")
    assert "exclude each other" in refused(engine, "image", "verify", "--key", "k", "--policy", "p", name)
    (tmp_path / "reject.json").write_text(json.dumps({"default": [REJECT]}))
    open_, absent = tmp_path / "open.json", f"{ours.address}/team/absent"
    open_.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    unseen = engine.ok("image", "verify", "--policy", open_, absent)
    assert unseen == f"{absent} is accepted: the default, {open_}, asks for no signature\n"
    assert "it is rejected" in refused(engine, "image", "verify", "--policy", f"{tmp_path}/reject.json", name)


@pytest.mark.parametrize("form", ["bundle", "tag"])
def test_what_cosign_signs(engine, policy, ours, tmp_path, form):
    if not (THERE / "bin/cosign").exists():
        pytest.skip(MISSING)
    source = Image([LayerTar().file("a", "b").bytes()], {})
    name = ours.push(source, "team/app", "1")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "COSIGN_PASSWORD": ""}

    def cosign(*words):
        program = THERE / "bin/cosign"
        subprocess.run([program, *words], cwd=tmp_path, env=env, check=True, capture_output=True, timeout=120)

    cosign("generate-key-pair")
    old = ["--new-bundle-format=false"] if form == "tag" else []
    cosign("sign", "--yes", "--key", "cosign.key", "--allow-http-registry", "--tlog-upload=false",
           "--use-signing-config=false", *old, f"{ours.address}/team/app@{source.digest}")  # fmt: skip
    key = f"{tmp_path}/cosign.pub"
    policy({ours.address: [requirement(key)]})
    if form == "bundle":
        assert "a signature is for no name" in refused(engine, "pull", name)
        policy({ours.address: [requirement(key, identity="matchAny")]})
    engine.ok("pull", name)
    ours.close()
    (row,) = map(json.loads, engine.ok("image", "verify", "--format", "json", name).splitlines())
    assert row["Form"] == {"bundle": "bundle", "tag": "simple"}[form]
    assert row["Digest"] == source.digest
    cosign("generate-key-pair", "--output-key-prefix", "other")
    policy({ours.address: [requirement(f"{tmp_path}/other.pub", identity="matchAny")]})
    assert "is not of the key" in refused(engine, "image", "verify", name)


def test_skopeo_is_of_the_same_opinion(engine, policy, ours, signer, tmp_path):
    """The same policies, signatures and images, by a program of those who made the file's format."""
    if not (THERE / "bin/skopeo").exists():
        pytest.skip(MISSING)
    skopeo = [LIBRARIES / "ld-linux-x86-64.so.2", "--library-path", LIBRARIES, THERE / "bin/skopeo"]
    source = Image([LayerTar().file("a", "b").bytes()], {})
    here = f"{ours.address}/team/app"
    name = ours.push(source, "team/app", "1")
    other = f"{ours.address}/other/app"
    folder = tmp_path / "registries.d"
    folder.mkdir()
    (folder / "default.yaml").write_text("default-docker:\n  use-sigstore-attachments: true\n")
    rules = [
        {"type": "matchExact"}, {"type": "matchRepoDigestOrExact"}, {"type": "matchRepository"},
        {"type": "exactReference", "dockerReference": f"{other}:1"},
        {"type": "exactRepository", "dockerRepository": other},
        {"type": "remapIdentity", "prefix": f"{ours.address}/team", "signedPrefix": f"{ours.address}/other"},
    ]  # fmt: skip
    said = [name, f"{here}:2", f"{other}:1"]
    opinions = []
    for signed in said:
        upload(name, signature=signer.simple(source.digest, signed))
        for rule in rules:
            policy({ours.address: [{"type": "sigstoreSigned", "keyPath": f"{tmp_path}/k.pub", "signedIdentity": rule}]})
            for image in (name, f"{here}@{source.digest}"):
                theirs = subprocess.run(
                    [*skopeo, "--registries.d", folder, "--policy", f"{tmp_path}/policy.json", "copy",
                     "--src-tls-verify=false", f"docker://{image}", f"dir:{tmp_path}/out"],
                    capture_output=True, timeout=60, check=False,
                )  # fmt: skip
                mine = engine("image", "verify", "-q", image)
                assert (theirs.returncode == 0) == (mine.returncode == 0), (signed, rule, image, theirs, mine)
                opinions.append(mine.returncode == 0)
    assert 5 < sum(opinions) < len(opinions) - 5
