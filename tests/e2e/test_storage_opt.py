"""--storage-opt: refused where it cannot be had; where it can, the writer is told and gets no further."""

import json
import tarfile

import pytest

from cowshed_conformance.backing import file_system

SCRIPT = """
df -m / | tail -n 1
dd if=/dev/zero of=/big bs=1M count=20; ls -l /big; rm /big; echo again > /more
for n in $(seq 100); do : > /f$n || break; done; ls / | grep -c ^f
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


@pytest.mark.parametrize("driver", ["overlay"])
@pytest.mark.parametrize("kind", ["ext4-quota", "xfs-quota"])
def test_a_container_keeps_to_its_limits(engine, tmp_path, kind, archive):
    with file_system(kind, str(tmp_path / "fs"), 400 << 20) as system:
        engine.root = system.path + "/store"
        engine.ok("load", "-i", archive)
        image = engine.ok("images", "-q").split()[0]
        limits = ["--storage-opt", "size=8m", "--storage-opt", "inodes=60"]
        engine.ok("create", "--name", "box", *limits, image, "sh", "-c", SCRIPT)
        (told,) = json.loads(engine.ok("inspect", "box"))
        assert told["HostConfig"]["StorageOpt"] == {"size": str(8 << 20), "inodes": "60"}
        done = engine("start", "-a", "box")
        assert done.returncode == 3
        lines = done.stdout.decode().splitlines()
        assert lines[0].split()[1] == "8", "df shows another size than the limit"
        assert 6 << 20 < int(lines[1].split()[4]) <= 8 << 20, lines
        assert 40 < int(lines[2]) < 60, lines
        said = done.stderr.decode()
        assert "quota exceeded" in said or "No space left" in said
        assert engine.ok("run", "--rm", image, "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=20") == ""
        # what would take a file out of its project is kept from it, however it is asked for
        assert engine("run", "--rm", "--storage-opt", "size=8m", image, "chattr", "-p", "0", "/srv").returncode != 0
        engine.ok("rm", "box")
        engine.ok("system", "prune", "-f")
        assert engine.ok("system", "check") == ""
        engine.close()
