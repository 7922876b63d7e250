"""diff and commit as a user sees them, on containers that run and that do not."""

import io
import json
import os
import signal
import subprocess
import tarfile
import time

import pytest

from cowshed_runtime.cgroup import freezer, layout
from cowshed_runtime.cgroup.group import Group


def changes(engine, name):
    return set(engine.ok("diff", name).splitlines())


def state_of_freezer(ident):
    return freezer.frozen(Group(ident))


def layer_of(engine, name):
    """The archive of an image's last layer."""
    digest = json.loads(engine.ok("image", "inspect", name))[0]["Layers"][-1]["Digest"]
    return tarfile.open(fileobj=io.BytesIO((engine.root / "blobs/sha256" / digest[7:]).read_bytes()), mode="r:gz")


def test_what_a_container_wrote_is_its_own_until_committed(pulled):
    pulled("run", "--name", "writer", pulled.image, "sh", "-c", "echo new > /srv/four; rm one; mkdir -p /data/deep")
    assert changes(pulled, "writer") == {"A /data", "A /data/deep", "C /srv", "A /srv/four", "D /srv/one"}
    ident = pulled.ok("commit", "writer", "test/committed:1").strip()
    assert ident.startswith("sha256:")
    assert pulled.ok("run", "--rm", "test/committed:1", "ls", "/srv").split() == ["four", "three"]
    assert pulled.ok("run", "--rm", pulled.image, "ls", "/srv").split() == ["one", "three"]
    with layer_of(pulled, "test/committed:1") as archive:
        assert archive.getnames() == [".", "data", "data/deep", "srv", "srv/.wh.one", "srv/four"]
    pulled.ok("rm", "writer")
    pulled.ok("rmi", "test/committed:1")
    assert len(os.listdir(pulled.root / "blobs/sha256")) == 3


def test_a_container_that_wrote_nothing(pulled):
    pulled.ok("run", "--name", "idle", "-v", "/made/for/it", "--tmpfs", "/fast", pulled.image, "true")
    assert changes(pulled, "idle") == set()
    pulled.ok("commit", "idle", "test/same")
    one, other = (json.loads(pulled.ok("image", "inspect", name))[0] for name in ("test/same", pulled.image))
    assert one["RootFS"] == other["RootFS"]
    assert one["Id"] != other["Id"]


def test_diff_of_a_running_container_and_as_json(pulled):
    pulled.ok("run", "-d", "--name", "up", pulled.image, "sh", "-c", "echo x > '/two words'; rm -r /srv; sleep 1000")
    until = time.monotonic() + 30
    while "D /srv" not in changes(pulled, "up"):
        assert time.monotonic() < until
    rows = [json.loads(line) for line in pulled.ok("diff", "--format", "json", "up").splitlines()]
    assert rows == [{"Kind": "D", "Path": "/srv"}, {"Kind": "A", "Path": "/two words"}]
    assert pulled.ok("diff", "--format", "{{.Path}}", "up").splitlines() == ["/srv", "/two words"]
    assert pulled("exec", "up", "true").returncode == 0


def test_what_a_commit_says_of_itself(pulled):
    pulled.ok(
        "run", "--name", "base", "-e", "FROM=caller", "-u", "www", "-w", "/tmp", "-l", "who=me", pulled.image,
        "sh", "-c", "echo x > /tmp/x",
    )  # fmt: skip
    pulled.ok(
        "commit", "-m", "why", "-a", "A. Author", "-c", 'ENV A="b c"', "--change", 'CMD ["cat", "/tmp/x"]', "-c",
        "EXPOSE 80", "-c", "LABEL more=yes", "base", "test/said",
    )  # fmt: skip
    found = json.loads(pulled.ok("image", "inspect", "test/said"))[0]
    config = found["Config"]
    assert config["Env"] == ["PATH=/bin", "GREETING=hello", "FROM=caller", "A=b c"]
    assert (config["User"], config["WorkingDir"], config["Cmd"]) == ("www", "/tmp", ["cat", "/tmp/x"])
    assert (config["Labels"], config["ExposedPorts"]) == ({"who": "me", "more": "yes"}, {"80/tcp": {}})
    assert (found["Comment"], found["Author"]) == ("why", "A. Author")
    assert pulled.ok("history", "--format", "{{.Comment}}", "test/said").splitlines()[0] == "why"
    assert pulled.ok("run", "--rm", "test/said") == "x\n"
    refused = pulled("commit", "-c", "RUN x", "base", "test/no")
    assert refused.returncode == 125
    assert b"RUN" in refused.stderr
    assert "test/no" not in pulled.ok("images")


def test_a_running_container_is_frozen_while_it_is_read(pulled, tmp_path):
    ident = pulled.ok("run", "-d", "--name", "busy", pulled.image, "sh", "-c",
                      "i=0; while :; do i=$((i+1)); echo $i > /a; cp /a /b; done").strip()  # fmt: skip
    if layout.host.find("freezer") == "" and not layout.host.v2:
        pytest.skip("this host has no freezer")
    killed = pulled("commit", "busy", "test/busy", env={"COWSHED_FAULT": "kill@difference.frozen"})
    assert killed.returncode == -signal.SIGKILL
    until = time.monotonic() + 30
    while state_of_freezer(ident):  # the child of the command that was killed lets it go on
        assert time.monotonic() < until
        time.sleep(0.005)
    failed = pulled("commit", "busy", "test/busy", env={"COWSHED_FAULT": "error@difference.frozen"})
    assert failed.returncode == 125
    assert not state_of_freezer(ident)
    pulled.ok("commit", "busy", "test/busy")
    assert not state_of_freezer(ident)
    a, b = (pulled.ok("run", "--rm", "test/busy", "cat", f"/{name}").strip() for name in "ab")
    assert not a or not b or int(a) - int(b) in (0, 1)  # either may just have been emptied
    # Unless told to, nothing is frozen; and a file that was written to while it was read is no part of an image.
    unpaused = pulled(
        "commit", "--pause=false", "busy", "test/unpaused", env={"COWSHED_FAULT": "kill@difference.frozen"}
    )
    assert unpaused.returncode == 0 or b"was changed while it was read" in unpaused.stderr


def test_a_repetition_gives_the_same_bytes(pulled):
    pulled.ok("run", "--name", "base", pulled.image, "sh", "-c", "echo x > /srv/new")
    epoch = {"SOURCE_DATE_EPOCH": "1600000000"}
    ids = {pulled("commit", "base", f"test/r:{n}", env=epoch).stdout for n in range(2)}
    assert len(ids) == 1
    with layer_of(pulled, "test/r:0") as archive:
        assert {member.mtime for member in archive} == {1_600_000_000}


def test_a_commit_can_be_used_by_another_driver(pulled, driver):
    pulled.ok("run", "--name", "base", pulled.image, "sh", "-c", "echo x > /new; rm /srv/one; ln /new /twin")
    pulled.ok("commit", "base", "test/both")
    pulled.driver = {"overlay": "copy", "copy": "overlay"}[driver]
    assert pulled.ok("run", "--rm", "test/both", "sh", "-c", "stat -c %h /new; ls /srv").split() == ["2", "three"]


def test_chains_of_commits(pulled):
    """Each commit stands on the one before; a deleted file stays deleted, an opaque directory stays empty."""
    pulled.ok("run", "--name", "one", pulled.image, "sh", "-c", "mkdir /d; echo 1 > /d/a; echo 1 > /d/b")
    pulled.ok("commit", "one", "test/chain:1")
    pulled.ok("run", "--name", "two", "test/chain:1", "sh", "-c", "rm -r /d; mkdir /d; echo 2 > /d/c")
    assert changes(pulled, "two") == {"C /d", "D /d/a", "D /d/b", "A /d/c"}
    pulled.ok("commit", "two", "test/chain:2")
    pulled.ok("run", "--name", "three", "test/chain:2", "sh", "-c", "echo 3 > /d/a; chmod 700 /d")
    assert changes(pulled, "three") == {"C /d", "A /d/a"}
    pulled.ok("commit", "three", "test/chain:3")
    assert pulled.ok("run", "--rm", "test/chain:3", "sh", "-c", "cd /d; grep . *; stat -c %a .").split() == [
        "a:3", "c:2", "700",
    ]  # fmt: skip


def test_names_that_are_no_text(pulled):
    pulled.ok("run", "--name", "odd", pulled.image, "sh", "-c", r"touch $(printf '/\377')")
    done = pulled("diff", "odd")
    assert (done.returncode, done.stdout) == (0, b"A /\xff\n")
    assert "\ufffd" in pulled("diff", "--format", "json", "odd").stdout.decode()


def test_nobody_to_ask(pulled):
    for words in (("diff", "nobody"), ("commit", "nobody")):
        done = pulled(*words)
        assert done.returncode == 125
        assert b"no such container" in done.stderr
    pulled.ok("create", "--name", "base", pulled.image, "true")
    bad = pulled("commit", "base", "Not/A/Name")
    assert (bad.returncode, b"no name of an image" in bad.stderr) == (125, True)


def test_a_full_disk_leaves_nothing(pulled, tmp_path):
    """Killed or refused half-way, the blob that was being made is gone after the next command that makes one."""
    pulled.ok("run", "--name", "base", pulled.image, "sh", "-c", "head -c 3000000 /dev/urandom > /big")
    limited = subprocess.run(
        ["sh", "-c", 'ulimit -f 1000; trap "" XFSZ; exec "$@"', "sh", *pulled.words("commit", "base", "test/big")],
        capture_output=True, env=pulled.env, timeout=60,
    )  # fmt: skip
    assert limited.returncode == 125, limited
    assert len(limited.stderr.splitlines()) == 1
    assert os.listdir(pulled.root / "blobs/partial") == []
    assert "test/big" not in pulled.ok("images")


@pytest.mark.parametrize("driver", ["overlay"])
def test_directories_that_lead_elsewhere(engine, greeting):
    """With redirects and metadata-only copies the upper directory is no diff: the trees are compared, of a container
    that runs through its own mount."""
    options = ("--driver-option", "redirect_dir=on", "--driver-option", "metacopy=on")
    engine.ok(*options, "pull", "-q", greeting)
    engine.ok(*options, "run", "-d", "--name", "base", greeting, "sh", "-c",
              "mv /srv /moved; chmod 600 /etc/passwd; touch /done; sleep 1000")  # fmt: skip
    wanted = {"D /srv", "A /moved", "A /moved/one", "A /moved/three", "C /etc", "C /etc/passwd", "A /done"}
    until = time.monotonic() + 30
    while "A /done" not in engine.ok(*options, "diff", "base").split("\n"):
        assert time.monotonic() < until
    for name in ("running", "stopped"):
        assert set(engine.ok(*options, "diff", "base").splitlines()) == wanted
        engine.ok(*options, "commit", "base", f"test/{name}")
        engine.ok(*options, "stop", "-t", "0", "base")
        said = engine.ok(*options, "run", "--rm", f"test/{name}", "sh", "-c", "cat /moved/one; head -c 4 /etc/passwd")
        assert said == "one\nroot"
