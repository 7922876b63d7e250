"""SIGKILL at random moments of what brings, makes, copies and removes images: nothing wrong is ever there, the next
attempt succeeds, and nothing is left.

COWSHED_KILLS says how often each command is killed (2), COWSHED_KILLS_SEED at which moments.
"""

import hashlib
import json
import os
import random
import shutil
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from cowshed_testing import leftovers
from cowshed_testing.command import Cowshed
from cowshed_testing.forked import Forked
from cowshed_testing.images import Image, LayerTar, docker_archive
from cowshed_testing.store import Store

from cowshed.image.archives import Archives
from cowshed.layers.digest import of_tree
from cowshed.state import images

KILLS = int(os.environ.get("COWSHED_KILLS", "2"))
NAME = "example.org/a/b:1"
EMPTY = '{"schemaVersion": 2, "manifests": []}'  # an index without images


def built(seed=5, compression=""):
    """Each layer says when its root was changed, so that its tree is the same whenever it is made."""
    noise = random.Random(seed)
    layers = [
        LayerTar().dir("./").dir(f"d{n}").file(f"d{n}/f", noise.randbytes(1_500_000)).file(f"d{n}/g", "x" * n)
        for n in range(4)
    ]
    return Image([layer.bytes() for layer in layers], compression=compression)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


class Scene:
    """A store of its own, a command, what that needs, and what may be there after it."""

    words = ()  # the command

    def __init__(self, folder, registry):
        self.folder, self.registry = folder, registry
        self.cowshed = Cowshed(folder)
        self.image = built()
        self._trees = {}  # by image id: the digest of its tree when nothing had been killed

    def once(self):
        """Make what the command needs, and the command."""
        raise NotImplementedError

    def before(self):
        """Make what it needs each time."""

    def seen(self, there):
        """Hold what is there right after the kill, ids of images in `there`, against what may be."""
        raise NotImplementedError

    def done(self):
        """Hold what is there after an attempt that succeeded against what should be, and remove it."""
        raise NotImplementedError

    # ------------------------------------------------------------ looking

    def images(self):
        return set(self.run("images", "-q", "--no-trunc").split())

    def assert_whole(self, ids):
        """Images have every byte of their archives, and the trees that they had at first."""
        with closing(Store(self.folder)) as it:
            archives = Archives(it.store, lambda name: it.layers)
            for id_ in ids:
                row = images.by_id(it.store, id_)
                for digest, _, size in row.blobs:
                    data = b"".join(archives.read(digest))
                    assert (len(data), hashlib.sha256(data).hexdigest()) == (size, digest[7:])
                layer = it.layers.by_chain_id(row.chain_ids[-1])
                if layer is not None:
                    with it.layers.mounted(layer, read_only=True) as root:
                        found = of_tree(root).value
                    assert self._trees.setdefault(id_, found) == found

    def left(self):
        """What nobody accounts for; the folder of recipes stays."""
        (run,) = [path for path in Path(self.cowshed.run).iterdir() if path.is_dir()]
        found = leftovers.files(self.cowshed.root, str(run))
        return [line for line in found if not line.endswith("/blobs/recipes")]

    def layout(self):
        """An archive of the image's layout."""
        self.image.write_layout(f"{self.folder}/layout", NAME)
        with tarfile.open(f"{self.folder}/layout.tar", "w") as tar:
            tar.add(f"{self.folder}/layout", ".")
        return f"{self.folder}/layout.tar"

    def older(self):
        """A docker archive of the image."""
        path = f"{self.folder}/docker.tar"
        Path(path).write_bytes(docker_archive(self.image, [NAME]))
        return path


class Brings(Scene):
    """The command brings the image, of which nothing is there before."""

    def seen(self, there):
        assert there <= {self.image.id}

    def done(self):
        assert self.images() == {self.image.id}
        self.assert_whole([self.image.id])
        self.run("rmi", NAME)
        assert os.listdir(f"{self.cowshed.root}/blobs/sha256") == []


class Load(Brings):
    def once(self):
        self.words = "load", "-q", "-i", self.layout()


class LoadDockerArchive(Brings):
    def once(self):
        self.words = "load", "-q", "-i", self.older()


class CopyIn(Brings):
    def once(self):
        self.words = "image", "copy", "-q", f"docker-archive:{self.older()}", f"cowshed:{NAME}"


class Pull(Brings):
    def once(self):
        self.registry.add(self.image)
        self.words = "pull", "-q", f"{self.registry.address}/a/b:latest"

    def done(self):
        self.run("tag", self.words[-1], NAME)
        self.run("rmi", self.words[-1])
        super().done()


class Keeps(Scene):
    """The image is there before, and a container that was made of it."""

    def once(self):
        self.run("load", "-q", "-i", self.layout())
        self.run("create", "--name", "made", NAME, "true")
        self.run("cp", f"{self.folder}/layout.tar", "made:/d0/copied")

    def others(self, there):
        """The images but for the one that is there before."""
        assert self.image.id in there
        return there - {self.image.id}


class Makes(Keeps):
    """The command makes a new image, the same each time."""

    made = None

    def seen(self, there):
        assert self.others(there) <= {self.made}

    def done(self):
        (made,) = self.others(self.images())
        self.made = self.made or made
        assert made == self.made
        self.assert_whole([self.image.id, made])
        self.run("rmi", "test/made:1")
        assert len(os.listdir(f"{self.cowshed.root}/blobs/sha256")) == 4


class Commit(Makes):
    def once(self):
        super().once()
        self.words = "commit", "made", "test/made:1"


class Import(Makes):
    def once(self):
        super().once()
        Path(self.folder, "layer.tar").write_bytes(next(iter(built(6).blobs.values())))
        self.words = "import", f"{self.folder}/layer.tar", "test/made:1"


class Gc(Keeps):
    """Another image goes, and what is in use stays."""

    words = "storage", "gc", "-f", "--keep-last", "0"

    def once(self):
        super().once()
        self.other = built(7)
        Path(self.folder, "other.tar").write_bytes(docker_archive(self.other, ["example.org/other:1"]))

    def before(self):
        self.run("load", "-q", "-i", f"{self.folder}/other.tar")

    def seen(self, there):
        assert self.others(there) <= {self.other.id}

    def done(self):
        assert self.images() == {self.image.id}
        self.assert_whole([self.image.id])
        assert len(os.listdir(f"{self.cowshed.root}/blobs/sha256")) == 4


class GcArchives(Keeps):
    """The archives of layers are dropped, and can be read as before."""

    words = "storage", "gc", "-f", "--archives"

    def once(self):
        self.image = built(compression="gzip")
        super().once()

    def before(self):
        self.run("load", "-q", "-i", f"{self.folder}/layout.tar")
        assert len(os.listdir(f"{self.cowshed.root}/blobs/sha256")) == 4

    def seen(self, there):
        assert there == {self.image.id}

    def done(self):
        self.seen(self.images())
        assert os.listdir(f"{self.cowshed.root}/blobs/sha256") == []
        assert len(os.listdir(f"{self.cowshed.root}/blobs/recipes")) == 4
        self.assert_whole([self.image.id])

    def left(self):
        return [line for line in super().left() if not line.startswith(f"missing: {self.cowshed.root}/blobs/sha256/")]


class Writes(Keeps):
    """The command copies the image to a place outside the store."""

    first = None  # what is there when nothing had been killed

    def once(self):
        super().once()
        os.mkdir(f"{self.folder}/out")
        self.words = "image", "copy", "-q", f"cowshed:{NAME}", self.goal

    def before(self):
        shutil.rmtree(f"{self.folder}/out")
        os.mkdir(f"{self.folder}/out")

    def seen(self, there):
        assert there == {self.image.id}
        self.outside(files(f"{self.folder}/out"))

    def done(self):
        found = files(f"{self.folder}/out")
        self.first = self.first or found
        assert found == self.first

    def outside(self, there):
        raise NotImplementedError


class CopyToLayout(Writes):
    @property
    def goal(self):
        return f"oci:{self.folder}/out:one"

    def before(self):
        super().before()
        Path(self.folder, "out/index.json").write_text(EMPTY)

    def outside(self, there):
        for name, data in there.items():
            if name.startswith("blobs/sha256/") and "." not in name:
                assert hashlib.sha256(data).hexdigest() == name[13:]
        if there["index.json"] != EMPTY.encode():
            assert there["index.json"] == self.first["index.json"]
            assert {name for name in self.first if name.startswith("blobs/")} <= set(there)


class CopyToDirectory(Writes):
    @property
    def goal(self):
        return f"dir:{self.folder}/out"

    def outside(self, there):
        if "manifest.json" in there:
            assert there | self.first == there


class CopyToArchive(Writes):
    @property
    def goal(self):
        return f"docker-archive:{self.folder}/out/image.tar:{NAME}"

    def outside(self, there):
        assert there in ({}, self.first)


class Sends(Keeps):
    """The command copies the image to the registry."""

    def once(self):
        super().once()
        name = f"{self.registry.address}/a/b:latest"
        self.words = self.command(name)
        self.run("tag", NAME, name)

    def before(self):
        self.registry.blobs.clear()
        self.registry.manifests.clear()

    def seen(self, there):
        assert there == {self.image.id}
        if "latest" in self.registry.manifests:
            self.done()
        for digest, data in list(self.registry.blobs.items()):
            assert self.image.blobs[digest] == data

    def done(self):
        assert self.registry.manifests["latest"][0] == self.image.manifest
        assert self.registry.blobs == self.image.blobs


class Push(Sends):
    def command(self, name):
        return "push", "-q", name


class CopyToRegistry(Sends):
    def command(self, name):
        return "image", "copy", "-q", f"cowshed:{NAME}", f"docker://{name}"


SCENES = (
    Pull, Load, LoadDockerArchive, Commit, Import, Gc, GcArchives, Push,
    CopyIn, CopyToLayout, CopyToDirectory, CopyToArchive, CopyToRegistry,
)  # fmt: skip


@pytest.mark.parametrize("kind", SCENES, ids=lambda kind: kind.__name__)
def test_killed(kind, fake):
    chance = random.Random(f"{os.environ.get('COWSHED_KILLS_SEED', '1')} {kind.__name__}")
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # stores are synced each time
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        scene = kind(folder, fake)
        met = 0
        with Forked(scene.cowshed, folder, SOURCE_DATE_EPOCH="1700000000") as scene.run:
            scene.once()
            for n in range(KILLS + 1):
                scene.before()
                if n:  # else it is seen what there is, and how long it takes, when nothing is killed
                    met += scene.run.killed(chance, *scene.words)
                    there = scene.images()
                    scene.assert_whole(there)
                    scene.seen(there)
                scene.run(*scene.words)
                scene.done()
                assert scene.left() == []
                assert json.loads(scene.run("system", "check", "--format", "json") or "[]") == []
        print(f"{kind.__name__}: {met} of {KILLS} met it alive")
