"""--storage-opt: refused where it cannot be had; where it can, the writer is told and gets no further."""

import json
import tarfile

import pytest

from cowshed_conformance.backing import file_system

SCRIPT = """
dd if=/dev/zero of=/big bs=64k count=160 conv=fsync
set -- $(ls -l /big); echo $5
rm /big; sync; sleep 1; echo again > /more; set -- $(ls -l /more); echo $5
exit 3
"""


@pytest.fixture(scope="module")
def archive(greeting_image, tmp_path_factory):
    """An image as a tar file: no registry is needed."""
    folder = tmp_path_factory.mktemp("archive")
    greeting_image.write_layout(f"{folder}/layout", "greeting")
    with tarfile.open(f"{folder}/image.tar", "w") as it:
        it.add(f"{folder}/layout", ".")
    return str(folder / "image.tar")


@pytest.mark.parametrize("driver", ["overlay"])
def test_a_limit_that_cannot_be_had_stops_all_before_anything_is_made(engine, tmp_path):
    with file_system("ext4", str(tmp_path / "fs"), 200 << 20) as system:
        engine.root = system.path + "/store"
        done = engine("run", "--storage-opt", "size=10m", "nowhere.invalid/image", "true")
        assert done.returncode == 125
        said = done.stderr.decode()
        assert "driver overlay has no size limits in this store" in said
        assert "cowshed driver why" in said
        assert engine.names() == []
        assert "prjquota" in engine.ok("driver", "why")
        engine.close()


@pytest.mark.parametrize("driver", ["copy"])
def test_words_that_are_no_limit_are_refused(engine):
    for word, why in {
        "size=0": "above 0", "size=ten": "a size like 512m", "size": "a size like", "inodes=-1": "above 0",
        "inodes=1.5": "above 0", "quota=1g": "not known",
    }.items():  # fmt: skip
        done = engine("create", "--storage-opt", word, "image")
        assert (done.returncode, why in done.stderr.decode()) == (125, True), (word, done.stderr)


@pytest.mark.parametrize(
    ("driver", "kind", "option"),
    [("overlay", "ext4-quota", ""), ("overlay", "xfs-quota", ""), ("btrfs", "btrfs", "quota=simple")],
)
def test_a_container_keeps_to_its_limits(engine, tmp_path, kind, option, archive):
    with file_system(kind, str(tmp_path / "fs"), 400 << 20) as system:
        engine.root = system.path + "/store"
        engine.options = ("--driver-option", option) if option else ()
        engine.ok("load", "-i", archive)
        image = engine.ok("images", "-q").split()[0]
        refused = engine("create", "--name", "few", "--storage-opt", "inodes=60", image)
        inodes = refused.returncode == 0
        if not inodes:
            assert f"driver {engine.driver} " in refused.stderr.decode()
            assert engine.names() == []
            if b"no size limits" in refused.stderr:
                engine.close()
                pytest.skip("the kernel has no limits here")
        engine.ok("create", "--name", "box", "--storage-opt", "size=8m", image, "sh", "-c", SCRIPT)
        (told,) = json.loads(engine.ok("inspect", "box"))
        assert told["HostConfig"]["StorageOpt"] == {"size": str(8 << 20)}
        done = engine("start", "-a", "box")
        assert done.returncode == 3, done.stderr
        size, more = done.stdout.decode().split()
        assert 5 << 20 < int(size) <= 8 << 20
        assert more == "6"
        said = done.stderr.decode()
        assert "quota exceeded" in said or "No space left" in said
        again = engine("start", "-a", "box")  # a limit lasts
        assert 5 << 20 < int(again.stdout.split()[0]) <= 8 << 20
        if inodes:
            many = "for n in $(seq 100); do touch /f$n || break; done; ls / | grep -c ^f"
            found = engine.ok("run", "--rm", "--storage-opt", "inodes=60", image, "sh", "-c", many)
            assert 40 < int(found) < 60
        # without a limit there is none; what would take a file out of its project is kept from a limited container
        assert engine.ok("run", "--rm", image, "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=10") == ""
        engine.ok("rm", *engine.names())
        engine.ok("system", "prune", "-f")
        assert engine.ok("system", "check").split()[-1] == "clean"
        engine.close()
