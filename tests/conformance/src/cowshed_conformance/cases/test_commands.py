"""H07, J06 and R11: the engine's public command line on this driver."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import tarfile
import time
from collections.abc import Iterator

import pytest

from cowshed.layers.driver import open_driver
from cowshed.state.store import open_store
from cowshed.storage import api
from cowshed.storage.errors import LayerId
from cowshed_conformance.archive import member, pack
from cowshed_conformance.backing import Backing
from cowshed_conformance.cases.test_crash import fill
from cowshed_conformance.commandline import CommandLine, command_line, image, shell
from cowshed_conformance.marks import budget, full
from cowshed_conformance.target import Target

DIR, LINK, SYMLINK = tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE


def layers() -> list[bytes]:
    """Two layers above the shell: the second hides and changes what the first has."""
    first = [
        member("srv", kind=DIR, mode=0o2750, uid=7, gid=8, mtime=1_000_000_000),
        member("srv/one", b"one\n", uid=7, mtime=1_000_000_001),
        member("srv/two", b"two\n", mode=0o4711),
        member("srv/again", kind=LINK, link="srv/one"),
        member("srv/deep", kind=DIR, mode=0o755),
        member("srv/deep/file", b"deep\n"),
    ]
    second = [
        member("srv/.wh.two"),
        member("srv/deep/.wh..wh..opq"),
        member("srv/deep/new", b"new\n"),
        member("srv/link", kind=SYMLINK, link="../bin/sh"),
    ]
    return [shell(), pack(first), pack(second)]


@pytest.fixture
def cowshed(target: Target, backing: Backing) -> Iterator[CommandLine]:
    with command_line(target, backing.place()) as made:
        made.ok("load", "-q", feed=image("test/image:1", *layers()))
        yield made


@full
@budget(120)
def test_H07_a_container_has_the_tree_of_its_images_layers(cowshed: CommandLine) -> None:
    cowshed.ok("create", "--name", "one", "test/image:1", "true")
    found = cowshed.files("one", "/srv/.")
    names = {name for name in found if name not in ("", ".")}
    assert names == {"one", "again", "deep", "deep/new", "link"}, "what the layers say and what there is differ"
    assert (found["one"].uid, found["one"].mtime) == (7, 1_000_000_001)
    assert {found["one"].linkname, found["again"].linkname} & {"one", "again", "./one", "./again"}, (
        "two names are two files"
    )
    assert cowshed.ok("diff", "one") == ""
    assert cowshed.ok("run", "--rm", "test/image:1", "sh", "-c", "cd /srv; ls -a; cat one deep/new").split() == [
        ".", "..", "again", "deep", "link", "one", "one", "new",
    ]  # fmt: skip
    assert cowshed.ok("system", "check", "--deep") == "clean\n"


@full
@budget(120)
def test_H07_what_a_container_changes_is_told_and_committed(cowshed: CommandLine) -> None:
    script = "echo x > /srv/mine; echo + >> /srv/one; rm -r /srv/deep; mv /tmp /moved; exit 3"
    cowshed.ok("run", "--name", "one", "test/image:1", "sh", "-c", script, status=3)
    told = cowshed.ok("diff", "one").splitlines()
    # both names of a file that has two, or that a copy-up has parted, may be told
    assert {"A /srv/mine", "C /srv/one", "D /srv/deep", "D /tmp", "A /moved"} <= set(told)
    near = {"/srv", "/srv/mine", "/srv/one", "/srv/again", "/srv/deep", "/tmp", "/moved"}
    assert {line.split()[1] for line in told} <= near
    cowshed.ok("commit", "one", "test/second:1")
    cowshed.ok("rm", "one")
    cowshed.ok("create", "--name", "two", "test/second:1", "true")
    assert {name for name in cowshed.files("two", "/srv/.") if name not in ("", ".")} == {
        "one",
        "again",
        "link",
        "mine",
    }
    assert cowshed.text("two", "/srv/one") == b"one\n+\n"
    assert cowshed.ok("diff", "two") == ""
    cowshed.ok("create", "--name", "three", "test/image:1", "true")
    assert cowshed.text("three", "/srv/one") == b"one\n", "the first image changed"
    # the layer below stays as long as something stands on it
    cowshed.ok("rm", "three")
    cowshed.ok("rmi", "test/image:1")
    assert cowshed.text("two", "/srv/one") == b"one\n+\n"
    assert cowshed.ok("system", "check", "--deep") == "clean\n"


@full
@budget(120)
def test_H07_files_go_into_a_container_and_out_of_it(cowshed: CommandLine) -> None:
    cowshed.ok("create", "--name", "one", "test/image:1", "cat", "/srv/put/a")
    put = pack(
        [member("put", kind=DIR, mode=0o700), member("put/a", b"in\n"), member("put/b", kind=LINK, link="put/a")]
    )
    cowshed.ok("cp", "-", "one:/srv", feed=put)
    assert cowshed.text("one", "/srv/put/b") == b"in\n"
    assert {"A /srv/put", "A /srv/put/a", "A /srv/put/b"} <= set(cowshed.ok("diff", "one").splitlines())
    assert cowshed.ok("start", "-a", "one") == "in\n"
    cowshed.ok("create", "--name", "other", "test/image:1", "true")
    assert cowshed.ok("diff", "other") == "", "what one container got another one has too"


@full
@budget(120)
def test_H07_exit_statuses_and_refusals(cowshed: CommandLine) -> None:
    cowshed.ok("run", "--rm", "test/image:1", "true")
    cowshed.ok("run", "--rm", "test/image:1", "sh", "-c", "exit 7", status=7)
    cowshed.ok("run", "--rm", "test/image:1", "no-such-program", status=127)
    cowshed.ok("run", "--rm", "test/image:1", "/srv/one", status=126)
    cowshed.ok("run", "--rm", "test/none:1", "true", status=125)
    cowshed.ok("rm", "nobody", status=1)
    cowshed.ok("run", "-d", "--name", "up", "test/image:1", "sleep", "1000")
    cowshed.ok("rm", "up", status=1)
    cowshed.ok("rmi", "test/image:1", status=1)
    assert cowshed.ok("exec", "up", "cat", "/srv/one") == "one\n"
    cowshed.ok("exec", "up", "sh", "-c", "echo y > /srv/y; exit 9", status=9)
    assert cowshed.text("up", "/srv/y") == b"y\n"
    cowshed.ok("kill", "up")
    cowshed.ok("wait", "up")
    assert cowshed.text("up", "/srv/y") == b"y\n"
    assert "A /srv/y" in cowshed.ok("diff", "up")
    cowshed.ok("rm", "up")
    cowshed.ok("rmi", "test/image:1")
    cowshed.ok("system", "prune", "-f")
    assert cowshed.ok("ps", "-aq") == cowshed.ok("images", "-q") == ""
    assert cowshed.ok("system", "check", "--deep") == "clean\n"


@full
@budget(120)
@pytest.mark.parametrize("trouble", ["full disk", "locked database"])
def test_J06_how_a_container_ended_and_what_it_said_outlives_trouble(
    target: Target, backing: Backing, trouble: str
) -> None:
    script = "trap 'echo ends; exit 3' TERM; echo begins; while :; do sleep 0.05; done"
    with backing.own(128 << 20, backing.loop_kind()) as system, command_line(target, f"{system.path}/j") as cowshed:
        cowshed.run_root = cowshed.words[cowshed.words.index("--run-root") + 1] = backing.place("run")
        cowshed.ok("load", "-q", feed=image("test/image:1", *layers()))
        cowshed.ok("run", "-d", "--name", "up", "test/image:1", "sh", "-c", script)
        pid = int(cowshed.ok("inspect", "--format", "{{.State.Pid}}", "up"))
        while "begins" not in cowshed.ok("logs", "up"):  # the case's budget ends it
            time.sleep(0.02)
        with fill(system.path) if trouble == "full disk" else locked(f"{cowshed.root}/db.sqlite"):
            os.kill(pid, signal.SIGTERM)
            while os.path.exists(f"/proc/{pid}"):
                time.sleep(0.02)
            time.sleep(0.2)  # its monitor meets the trouble
        assert cowshed.ok("wait", "up") == "3\n"
        assert cowshed.ok("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "up") == "exited 3\n"
        said = cowshed.ok("logs", "up").split()
        assert said in (["begins", "ends"], ["begins"]), "the log lost what was there before"
        assert trouble == "full disk" or said == ["begins", "ends"]
        cowshed.ok("rm", "up")
        assert cowshed.ok("system", "check", "--deep") == "clean\n"


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Nobody else writes to the database."""
    database = sqlite3.connect(path, isolation_level=None)
    try:
        database.execute("begin exclusive")
        yield
        database.execute("rollback")
    finally:
        database.close()


def _middle(cowshed: CommandLine) -> tuple[int, str]:
    """Number and id of the layer between the image's lowest and its highest."""
    with contextlib.closing(sqlite3.connect(f"{cowshed.root}/db.sqlite")) as db:
        found = db.execute(
            "select number, id from layers l where kind = 'committed' and parent is not null "
            "and exists (select 1 from layers where parent = l.number and kind = 'committed')"
        ).fetchone()
    return int(found[0]), str(found[1])


def _lose(cowshed: CommandLine) -> None:
    """Take the layer away behind the engine's back, as a stranger does."""
    number, id_ = _middle(cowshed)
    store = open_store(cowshed.root, cowshed.run_root)
    driver = open_driver(store, cowshed.name, cowshed.given)
    try:
        driver.remove(api.Layer(LayerId(id_), number, api.Kind.COMMITTED))
        driver.purge(lambda _: contextlib.nullcontext(True), 30)
    finally:
        driver.close()
        store.close()


def _seen(cowshed: CommandLine, name: str) -> dict[str, tuple[object, ...]]:
    return {
        path: (info.type, info.mode, info.uid, info.gid, info.size, info.linkname)
        for path, info in cowshed.files(name, "/.").items()
    }


@full
@budget(180)
def test_R11_a_lost_layer_is_made_again_from_its_blob_below_what_stands_on_it(cowshed: CommandLine) -> None:
    cowshed.ok("run", "--name", "one", "test/image:1", "sh", "-c", "echo x > /srv/mine; rm /srv/link")
    before = _seen(cowshed, "one")
    _lose(cowshed)
    assert "layer.missing" in cowshed.ok("storage", "check", "--format", "{{.Code}}", status=1).split()
    assert cowshed.ok("storage", "repair", "--force").splitlines()[-1] == "clean"
    assert cowshed.ok("storage", "check", "--deep") == "clean\n"
    assert _seen(cowshed, "one") == before, "what stood on the layer is another"
    assert cowshed.text("one", "/srv/mine") == b"x\n"
    assert cowshed.ok("run", "--rm", "test/image:1", "cat", "/srv/one", "/srv/deep/new") == "one\nnew\n"


@full
@budget(180)
def test_R11_a_layer_is_not_made_again_below_what_is_mounted(cowshed: CommandLine) -> None:
    number, _ = _middle(cowshed)
    cowshed.ok("run", "-d", "--name", "up", "test/image:1", "sleep", "1000")
    with contextlib.closing(sqlite3.connect(f"{cowshed.root}/db.sqlite", isolation_level=None)) as db:
        db.execute("update layers set durable = 0, boot_id = 'earlier' where number = ?", (number,))
    told = cowshed.ok("storage", "repair", "--force", status=1)
    assert "failed: layer.suspect" in told
    assert "stop container up" in told
    assert cowshed.ok("exec", "up", "cat", "/srv/one", "/srv/deep/new") == "one\nnew\n", "it lost its files"
    cowshed.ok("rm", "-f", "up")
    assert cowshed.ok("storage", "repair", "--force").splitlines()[-1] == "clean"
    assert cowshed.ok("storage", "check", "--deep") == "clean\n"
