"""cp as docker has it, into containers and out of them, whether they run or not; and the holes that others had."""

import gzip
import io
import os
import stat
import subprocess
import tarfile
import time

import pytest

from cowshed.layers.changes import of_trees


@pytest.fixture(params=["stopped", "running"])
def box(pulled, request):
    pulled.ok("create", "--name", "box", "-v", "/vol", "-v", "vol2:/new/vol", "--tmpfs", "/fast", pulled.image,
              "sleep", "1000")  # fmt: skip
    if request.param == "running":
        pulled.ok("start", "box")
    pulled.running = request.param == "running"
    return pulled


@pytest.fixture
def here(tmp_path):
    top = tmp_path / "here"
    (top / "dir/sub").mkdir(parents=True)
    (top / "file").write_text("carried")
    (top / "dir/a").write_text("a")
    (top / "dir/sub/b").write_text("b")
    (top / "dir/link").symlink_to("a")
    (top / "dir/.wh.a").write_text("a name like any other")
    return top


def listed(engine, path):
    """Names in an archive of what is at a path."""
    with tarfile.open(fileobj=io.BytesIO(engine("cp", f"box:{path}", "-").stdout)) as archive:
        return archive.getnames()


def content(engine, path):
    with tarfile.open(fileobj=io.BytesIO(engine("cp", f"box:{path}", "-").stdout)) as archive:
        return archive.extractfile(archive.getmembers()[0]).read().decode()


DIR = ["dir", "dir/.wh.a", "dir/a", "dir/link", "dir/sub", "dir/sub/b"]


def below(name):
    return [name + each[3:] for each in DIR]


def test_where_things_go_in_a_container(box, here):
    box.ok("cp", f"{here}/file", "box:/srv")  # into a directory
    assert content(box, "/srv/file") == "carried"
    box.ok("cp", f"{here}/file", "box:srv/named")  # a new name; paths are always from /
    assert content(box, "/srv/named") == "carried"
    (here / "file").write_text("again")
    box.ok("cp", f"{here}/file", "box:/srv/named")  # over a file
    assert content(box, "/srv/named") == "again"
    box.ok("cp", f"{here}/dir", "box:/srv/new")  # a new directory gets what is in the source
    assert listed(box, "/srv/new") == below("new")
    box.ok("cp", f"{here}/dir", "box:/srv/new")  # one that is there gets the source
    assert listed(box, "/srv/new/dir") == DIR
    box.ok("cp", f"{here}/dir/.", "box:/root")  # `/.` is only what is in it
    assert listed(box, "/root/.")[1:] == [each[4:] for each in DIR[1:]]


def test_where_things_go_on_the_host(box, here, tmp_path):
    box.ok("cp", f"{here}/dir", "box:/srv/dir")
    out = tmp_path / "out"
    box.ok("cp", "box:/srv/dir", str(out))
    assert sorted(os.listdir(out)) == [".wh.a", "a", "link", "sub"]
    box.ok("cp", "box:/srv/dir", str(out))
    assert sorted(os.listdir(out / "dir")) == [".wh.a", "a", "link", "sub"]
    (out / "a").write_text("other")
    box.ok("cp", "box:/srv/dir/.", f"{out}/")
    assert (out / "a").read_text() == "a"
    assert os.readlink(out / "link") == "a"
    box.ok("cp", "-L", "box:/srv/dir/link", f"{out}/followed")
    assert (out / "followed").read_text() == "a"
    box.ok("cp", "box:/srv/dir/link", f"{out}/copied")
    assert os.readlink(out / "copied") == "a"


REFUSED = [
    (("HERE/file", "box:/missing/name"), "does not exist"),
    (("HERE/file", "box:/missing/"), "does not exist"),
    (("HERE/missing", "box:/srv"), "does not exist"),
    (("HERE/file/", "box:/srv"), "exist"),
    (("HERE/dir", "box:/srv/one"), "is a file"),
    (("box:/srv/missing", "HERE"), "does not exist"),
    (("box:/srv/missing", "-"), "does not exist"),
    (("box:/etc/passwd/", "HERE"), "exist"),
    (("box:/etc", "HERE/file"), "is a file"),
    (("HERE/srv", "box:/"), "is no directory"),  # below it, one is a directory here and a file there
    (("HERE/one", "box:/srv"), "is no directory"),
    (("HERE/folder", "box:/srv"), "is a directory"),
    (("HERE/dir", "HERE/new"), "within this host"),
    (("box:/a", "box:/b"), "between two containers"),
    (("nobody:/a", "HERE"), "no such container"),
    (("box:", "HERE"), "CONTAINER:PATH"),
    (("", "box:/srv"), "empty"),
    (("-", "box:/srv/one"), "no directory"),
    (("-", "box:/missing"), "does not exist"),
    (("-", "box:/srv"), "archive"),
]


def test_refused_in_one_line(pulled, here):
    pulled.ok("create", "--name", "box", pulled.image, "true")
    (here / "srv/one").mkdir(parents=True)
    (here / "one").mkdir()
    pulled.ok("cp", f"{here}/dir", "box:/srv/folder")
    (here / "folder").write_text("a file here, a directory there")
    before = listed(pulled, "/srv")
    for words, text in REFUSED:
        done = pulled("cp", *(word.replace("HERE", str(here)) for word in words), feed=b"no archive" * 100)
        assert done.returncode == 125, (words, done)
        assert text in done.stderr.decode(), (words, done)
        assert len(done.stderr.splitlines()) == 1
    assert listed(pulled, "/srv") == before


def test_archives_on_standard_input_and_output(box, here):
    plain = subprocess.run(["tar", "-C", here, "-cf", "-", "dir"], capture_output=True, check=True).stdout
    for n, data in enumerate((plain, gzip.compress(plain))):
        box.ok("cp", f"{here}/dir/sub", f"box:/srv/in{n}")
        box.ok("cp", "-", f"box:/srv/in{n}", feed=data)
        assert listed(box, f"/srv/in{n}/dir") == DIR
    assert listed(box, "/srv/in0/dir/a") == ["a"]
    assert sorted(listed(box, "/srv/in0/dir/.")) == sorted([".", *(each[4:] for each in DIR[1:])])
    cut = box("cp", "-", "box:/srv", feed=plain[:1000])
    assert cut.returncode == 125
    assert b"cut short" in cut.stderr


def test_owners_modes_times_and_links(box, here, tmp_path):
    os.chown(here / "file", 1234, 5678)
    os.chmod(here / "file", 0o640)
    os.utime(here / "file", ns=(1_600_000_000_000_000_001, 1_600_000_000_000_000_001))
    os.link(here / "file", here / "dir/twin")
    os.link(here / "file", here / "dir/sub/twin")
    box.ok("cp", f"{here}/file", "box:/srv/roots")
    box.ok("cp", "-a", f"{here}/file", "box:/srv/kept")
    box.ok("cp", "-a", f"{here}/dir", "box:/srv/dir")
    with tarfile.open(fileobj=io.BytesIO(box("cp", "box:/srv", "-").stdout)) as archive:
        found = {m.name: m for m in archive}
    assert (found["srv/roots"].uid, found["srv/roots"].gid, found["srv/roots"].mode) == (0, 0, 0o640)
    assert (found["srv/kept"].uid, found["srv/kept"].gid) == (1234, 5678)
    assert found["srv/dir/twin"].linkname == "srv/dir/sub/twin"
    out = tmp_path / "out"
    out.mkdir()
    box.ok("cp", "box:/srv/kept", f"{out}/mine")
    box.ok("cp", "-a", "box:/srv/dir", f"{out}/dir")
    assert os.stat(out / "mine").st_uid == os.geteuid()
    assert os.stat(out / "mine").st_mtime_ns == 1_600_000_000_000_000_001
    with_times = [os.open(path, os.O_RDONLY) for path in (here / "dir", out / "dir")]
    assert [c.path for c in of_trees(*with_times).changes if c.path not in (b"", b"sub")] == []
    for fd in with_times:
        os.close(fd)
    assert os.stat(out / "dir/twin").st_ino == os.stat(out / "dir/sub/twin").st_ino


def test_volumes_are_where_the_container_has_them(box, here):
    box.ok("cp", f"{here}/file", "box:/vol/file")
    box.ok("cp", f"{here}/file", "box:/new/vol")
    assert (box.root / "volumes/vol2/_data/file").read_text() == "carried"
    assert box.ok("diff", "box") == ""
    assert listed(box, "/vol") == ["vol", "vol/file"]
    if not box.running:
        box.ok("start", "box")
    assert box.ok("exec", "box", "cat", "/vol/file", "/new/vol/file") == "carriedcarried"


def test_what_is_in_memory_only_is_never_lost_in_silence(box, here):
    done = box("cp", f"{here}/file", "box:/fast/file")
    if box.running:
        assert box.ok("exec", "box", "cat", "/fast/file") == "carried"
    else:
        assert done.returncode == 125
        assert b"read-only" in done.stderr
    assert box("cp", f"{here}/file", "box:/proc/file").returncode == 125
    assert box.ok("diff", "box") == ""


def test_a_whole_container_without_what_is_the_kernels(box):
    names = listed(box, "/")
    assert {"bin/busybox", "srv/one", "vol", "proc"} <= set(names)
    assert not any(name.startswith(("proc/", "sys/")) for name in names)


def test_a_read_only_container_stays_as_it_is(pulled, here):
    pulled.ok("create", "--name", "box", "--read-only", "-v", "/vol", pulled.image, "sleep", "1000")
    for _ in ("stopped", "running"):
        assert pulled("cp", f"{here}/file", "box:/srv").returncode == 125
        pulled.ok("cp", f"{here}/file", "box:/vol")
        pulled.ok("start", "box")


def test_a_name_of_this_host_may_have_a_colon(pulled, here):
    pulled.ok("create", "--name", "box", pulled.image, "true")
    (here / "a:b").write_text("colon")
    done = subprocess.run(pulled.words("cp", "./a:b", "box:/srv/c:d"), cwd=here, env=pulled.env, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"Successfully copied")
    assert content(pulled, "/srv/c:d") == "colon"
    assert pulled("cp", "-q", "box:/srv/c:d", f"{here}/e").stderr == b""


# ---------------------------------------------------------------- what went wrong for others


def test_cve_2018_15664_links_are_the_containers(box, here, tmp_path):
    """docker cp followed links of the container on the host, above all such as came up while it worked."""
    host = tmp_path / "host"
    host.mkdir()
    (host / "secret").write_text("of the host")
    (here / "evil").symlink_to(f"../../../../../../../..{host}")
    (here / "straight").symlink_to(str(host))
    box.ok("cp", f"{here}/evil", "box:/evil")
    box.ok("cp", f"{here}/straight", "box:/straight")
    for name in ("evil", "straight"):
        assert box("cp", f"box:/{name}/secret", f"{tmp_path}/stolen").returncode == 125
        assert box("cp", "-L", f"box:/{name}", f"{tmp_path}/stolen").returncode == 125
        assert box("cp", f"{here}/file", f"box:/{name}/planted").returncode == 125
    assert os.listdir(host) == ["secret"]
    assert not (tmp_path / "stolen").exists()


def test_cve_2018_15664_links_that_come_and_go(pulled, here, tmp_path):
    host = tmp_path / "host"
    host.mkdir()
    (host / "secret").write_text("of the host")
    loop = f"mkdir /d; echo own > /d/secret; while :; do mv /d /e; ln -s {host} /d; rm /d; mv /e /d; done"
    pulled.ok("run", "-d", "--name", "box", pulled.image, "sh", "-c", loop)
    for n in range(12):
        pulled("cp", "box:/d/secret", f"{tmp_path}/got{n}")
        pulled("cp", "box:/d", f"{tmp_path}/tree{n}")
        pulled("cp", f"{here}/file", f"box:/d/planted{n}")
    assert os.listdir(host) == ["secret"]
    got = [path.read_text() for path in tmp_path.glob("got*") if path.is_file() and not path.is_symlink()]
    got += [path.read_text() for path in tmp_path.glob("tree*/secret") if not path.parent.is_symlink()]
    assert set(got) <= {"own\n"}


def test_cve_2019_10152_and_2019_14271_nothing_of_the_container_is_followed_or_run(box, here, tmp_path):
    """podman cp followed a link at the destination; docker cp loaded the container's libnss. Whatever a container has
    in the places of libraries and modules: none of it is looked for there."""
    poison = here / "poison"
    for place in ("lib/x86_64-linux-gnu", "usr/lib/python3/dist-packages", "etc"):
        (poison / place).mkdir(parents=True)
    for name in ("lib/x86_64-linux-gnu/libnss_files.so.2", "lib/x86_64-linux-gnu/libc.so.6", "etc/nsswitch.conf",
                 "usr/lib/python3/dist-packages/encodings.py", "etc/ld.so.preload"):  # fmt: skip
        (poison / name).write_text(f"import os; os.mkdir('{tmp_path}/poisoned')")
    box.ok("cp", f"{poison}/.", "box:/")
    box.ok("cp", "box:/etc/passwd", str(tmp_path / "out"))
    assert not (tmp_path / "poisoned").exists()
    (here / "out").symlink_to("/etc/planted")
    box.ok("cp", f"{here}/out", "box:/srv/out")
    box.ok("cp", f"{here}/file", "box:/srv/out")  # the link leads to a new file in the container
    assert content(box, "/etc/planted") == "carried"
    assert not os.path.exists("/etc/planted")


def test_cve_2026_41567_archives_are_unpacked_in_process(box, here):
    """The engine's decompressor was taken from the container's PATH."""
    (here / "gzip").write_text("#!/bin/sh\necho poisoned > /srv/poisoned\n")
    os.chmod(here / "gzip", 0o755)
    for folder in ("bin", "usr/bin"):
        box.ok("cp", f"{here}/gzip", f"box:/{folder}/gzip")
        box.ok("cp", f"{here}/gzip", f"box:/{folder}/unpigz")
    plain = subprocess.run(["tar", "-C", here, "-cf", "-", "dir"], capture_output=True, check=True).stdout
    box.ok("cp", "-", "box:/srv", feed=gzip.compress(plain))
    assert listed(box, "/srv/dir") == DIR
    assert box("cp", "box:/srv/poisoned", "-").returncode == 125


def test_what_a_container_made_does_not_become_the_callers_own(box, here, tmp_path):
    """A set-user-id file, a file with capabilities and a device of the container, copied out by root."""
    (here / "setuid").write_text("")
    (here / "capable").write_text("")
    os.chmod(here / "setuid", 0o6755)
    os.setxattr(here / "capable", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.mknod(here / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    box.ok("cp", f"{here}/.", "box:/srv")
    for words, kept in ((("cp",), False), (("cp", "-a"), True)):
        out = tmp_path / f"out-{kept}"
        box.ok(*words, "box:/srv", str(out))
        assert stat.S_IMODE(os.stat(out / "setuid").st_mode) == (0o6755 if kept else 0o755)
        assert ("security.capability" in os.listxattr(out / "capable")) is kept
        assert (out / "device").exists() is kept


def test_a_pipe_in_the_way_does_not_hold_it_up(box, tmp_path):
    """A fifo is copied as one; it is never opened."""
    os.mkfifo(tmp_path / "fifo")
    begun = time.monotonic()
    box.ok("cp", str(tmp_path / "fifo"), "box:/srv/fifo")
    box.ok("cp", "box:/srv", f"{tmp_path}/out")
    assert (tmp_path / "out/fifo").is_fifo()
    assert time.monotonic() - begun < 60
