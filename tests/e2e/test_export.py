"""save, export and import as a user sees them: round trips, the same bytes wherever they are made."""

import hashlib
import io
import json
import os
import random
import subprocess
import tarfile
import time

import pytest

from cowshed.layers.archive import header


def tar_of(**files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def test_an_image_goes_out_and_comes_back(pulled, tmp_path):
    before = json.loads(pulled.ok("image", "inspect", pulled.image))[0]
    pulled.ok("save", "-q", "-o", str(tmp_path / "out.tar"), pulled.image)
    with open(tmp_path / "piped.tar", "wb") as out:
        assert subprocess.run(pulled.words("image", "save", "-q", pulled.image), stdout=out).returncode == 0
    assert (tmp_path / "out.tar").read_bytes() == (tmp_path / "piped.tar").read_bytes()
    pulled.ok("rmi", pulled.image)
    assert pulled.ok("load", "-q", "-i", str(tmp_path / "out.tar")) == f"Loaded image: {pulled.image}\n"
    after = json.loads(pulled.ok("image", "inspect", pulled.image))[0]
    assert after["Descriptor"] == before["Descriptor"]
    assert pulled.ok("run", "--rm", pulled.image, "ls", "/srv").split() == ["one", "three"]


def test_a_file_system_goes_out_and_comes_back_as_an_image(pulled, tmp_path):
    pulled.ok("run", "--name", "box", "-v", "/data", pulled.image, "sh", "-c", "echo new > /srv/four; echo x > /data/x")
    pulled.ok("export", "-o", str(tmp_path / "box.tar"), "box")
    with tarfile.open(tmp_path / "box.tar") as tar:
        names = tar.getnames()
    assert {"srv/four", "srv/one", "bin/busybox"} < set(names)
    assert names == sorted(names, key=lambda name: [] if name == "." else name.split("/"))
    assert "srv/two" not in names
    assert "data/x" not in names
    env = {"SOURCE_DATE_EPOCH": "1700000000"}
    words = ("import", "-c", 'CMD ["ls", "/srv"]', "-c", "ENV A=b", "-m", "from a box")
    first = pulled.ok(*words, str(tmp_path / "box.tar"), "team/box:1", env=env)
    second = pulled.ok(*words, str(tmp_path / "box.tar"), "team/box:2", env=env)
    assert first == second
    assert pulled.ok("run", "--rm", "team/box:1").split() == ["four", "one", "three"]
    (step,) = [json.loads(line) for line in pulled.ok("history", "--format", "json", "team/box:1").splitlines()]
    assert step["Comment"] == "from a box"
    (image,) = json.loads(pulled.ok("image", "inspect", "team/box:1"))
    assert image["Config"]["Env"] == ["A=b"]
    assert image["Created"] == "2023-11-14T22:13:20.000000000Z"
    assert image["RootFS"]["Layers"] == ["sha256:" + hashlib.sha256((tmp_path / "box.tar").read_bytes()).hexdigest()]


def test_a_running_container_is_exported_whole(pulled):
    script = "for n in 1 2 3; do echo $n > /srv/n; done; touch /ready; while :; do date > /srv/changing; done"
    pulled.ok("run", "-d", "--name", "busy", pulled.image, "sh", "-c", script)
    for _ in range(200):
        if b"A /ready" in pulled("diff", "busy").stdout:
            break
    done = pulled("export", "busy")
    assert done.returncode == 0, done.stderr
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        assert tar.extractfile("srv/n").read() == b"3\n"
    assert pulled.ok("ps", "--format", "{{.Names}}").split() == ["busy"]


@pytest.mark.parametrize("word", ["http://example.org/root.tar", "https://example.org/x"])
def test_import_asks_no_network(engine, word):
    done = engine("import", word)
    assert done.returncode == 125
    assert b"nothing from a network" in done.stderr


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", b"empty"),
        (b"this is no archive at all" * 100, b"no tar archive"),
        (tar_of(a=b"x" * 2000)[:1500], b"cut short"),
        (b"\x1f\x8b" + b"broken" * 100, b"gzip data"),
        (header(b"a", b"Z", 0o644, (0, 0), 0) + bytes(1024), b"unknown type"),
    ],
)
def test_import_of_what_is_no_root_file_system_leaves_nothing(engine, data, said):
    done = engine("import", "-", "team/broken", feed=data)
    assert done.returncode == 125
    assert said in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert engine.ok("images", "-q") == ""
    assert [p for p in (engine.root / "blobs").rglob("*") if p.is_file()] == []


def test_an_import_that_is_packed(engine):
    import bz2
    import gzip
    import lzma

    data = tar_of(file=b"content")
    ids = {
        engine.ok("import", "-", feed=pack(data), env={"SOURCE_DATE_EPOCH": "1"})
        for pack in (bytes, gzip.compress, lzma.compress, bz2.compress)
    }
    assert len(ids) == 1


@pytest.mark.parametrize("driver", ["overlay"])
@pytest.mark.parametrize(("asked", "kind"), [("gzip", "tar+gzip"), ("zstd", "tar+zstd"), ("none", "tar")])
def test_new_layers_are_packed_as_is_asked(pulled, asked, kind):
    """Whatever packs it, it is the same layer."""
    pulled.ok("run", "--name", "box", pulled.image, "sh", "-c", "echo new > /srv/four")
    pulled.ok("commit", "--compression", asked, "box", "test/made")
    data = pulled("export", "box").stdout
    pulled.ok("import", "--compression", asked, "-", "test/brought", feed=data)
    for name in ("test/made", "test/brought"):
        (image,) = json.loads(pulled.ok("image", "inspect", name))
        assert image["Layers"][-1]["MediaType"] == f"application/vnd.oci.image.layer.v1.{kind}"
        assert pulled.ok("run", "--rm", name, "/bin/cat", "/srv/four") == "new\n"
    assert image["RootFS"]["Layers"] == ["sha256:" + hashlib.sha256(data).hexdigest()]


@pytest.mark.parametrize("driver", ["overlay"])
def test_an_archive_is_whole_or_not_there_whenever_its_maker_is_killed(pulled, tmp_path):
    (folder := tmp_path / "out").mkdir()
    words = ("save", "-q", "-o", f"{folder}/image.tar", pulled.image)
    begun = time.monotonic()
    pulled.ok(*words)
    took, whole = time.monotonic() - begun, (folder / "image.tar").read_bytes()
    chance = random.Random(3)
    for _ in range(12):
        (folder / "image.tar").unlink(missing_ok=True)
        process = pulled.spawn(*words)
        time.sleep(chance.random() * took)
        process.kill()
        process.wait()
        assert [name for name in os.listdir(folder) if name != "image.tar"] == []
        assert not os.listdir(folder) or (folder / "image.tar").read_bytes() == whole
    pulled.ok(*words)
    assert (folder / "image.tar").read_bytes() == whole


WORK = """
    set -e; rm one; echo more >> three; mkdir -p /new/dir; cd /new; echo x > file; ln file hard; ln -s file link
    mkfifo pipe; chmod 4750 file; chown 5:6 dir; rm -r /var; mkdir /var; echo y > /var/y
    dd of=holes bs=1 seek=1000000 < file
"""


@pytest.mark.parametrize("where", ["overlay", "btrfs", "aufs", "aufs@fuse-overlayfs", "devicemapper", "zfs"])
def test_the_same_tree_gives_the_same_archives_as_on_copy(engine_on, greeting_image, tmp_path, where):
    """export, and the layers that commit makes: bytes are of the tree alone."""
    epoch = {"SOURCE_DATE_EPOCH": "1700000000"}
    exported, layers = set(), set()
    greeting_image.write_layout(f"{tmp_path}/image", "test/greeting")
    with engine_on(where, tmp_path) as engine:
        engine.ok("load", "-q", "-i", f"{tmp_path}/image")
        for driver, options in ((engine.driver, engine.options), ("copy", ())):
            engine.driver, engine.options = driver, options
            engine.ok("run", "--name", driver, "test/greeting", "sh", "-c", WORK)
            done = engine("export", driver, env=epoch)
            assert done.returncode == 0, done.stderr
            exported.add(done.stdout)
            engine.ok("commit", driver, f"test/on-{driver}", env=epoch)
            layers.add(json.loads(engine.ok("image", "inspect", f"test/on-{driver}"))[0]["Layers"][-1]["Digest"])
    assert len(exported) == 1
    assert len(layers) == 1
