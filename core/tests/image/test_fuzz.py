"""Generated layers, archives, manifests and configurations that mean harm: an error of ours or nothing, and the host as
it was. How many: COWSHED_HOSTILE (the record was made with 10000)."""

import copy
import io
import json
import os
import random
import shutil
import tarfile
import tempfile

import pytest
from cowshed_testing.hostile import Hostile
from cowshed_testing.images import LayerTar, digest
from cowshed_testing.samples import small

from cowshed.errors import CowshedError
from cowshed.image import dockerarchive, layout, manifest, progress
from cowshed.image.history import history
from cowshed.image.platform import host
from cowshed.image.resolve import resolve
from cowshed.image.transports import graph
from cowshed.layers.apply import apply
from cowshed.layers.tarstream import FILE, SYMLINK, Feed, entries

COUNT = int(os.environ.get("COWSHED_HOSTILE", "400"))
JUNK = (None, True, 0, -1, 1 << 70, 1.5, "", "x" * 2000, "sha256:../../../etc/passwd", "sha256:" + "0" * 64, [], {},
        [[]], {"a": {"b": []}}, manifest.OCI_INDEX, "\0", "é\ud800", ["=", "A", "A=b\0"])  # fmt: skip


def one_line(error):
    assert "\n" not in str(error)


def facts(folder):
    """All that could be changed of files: bytes, modes, owners, links, attributes, and times to the nanosecond."""
    found = {}
    for top, folders, names in os.walk(folder):
        for path in [top, *(f"{top}/{name}" for name in [*folders, *names])]:
            status = os.lstat(path)
            data = b""
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    data = file.read()
            found[path] = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_size,
                           status.st_mtime_ns, status.st_ctime_ns, tuple(os.listxattr(path, follow_symlinks=False)),
                           data)  # fmt: skip
    return found


@pytest.fixture
def place():
    """A directory in memory with `outside`, in which nothing may change."""
    where = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="hostile-", dir=where) as folder:
        os.makedirs(f"{folder}/outside/deep")
        for name, mode in (("canary", 0o640), ("deep/canary", 0o4755), ("new-name", 0o600)):
            with open(f"{folder}/outside/{name}", "w") as file:
                file.write("alive")
            os.chmod(f"{folder}/outside/{name}", mode)
            os.chown(f"{folder}/outside/{name}", 5, 6)
        os.symlink("canary", f"{folder}/outside/link")
        before = facts(f"{folder}/outside")
        yield folder
        assert facts(f"{folder}/outside") == before
        assert sorted(os.listdir(folder)) == ["outside"]


def test_hostile_layers_leave_the_host_as_it_was(place):
    """S4 to S8 (CVE-2014-6407, CVE-2021-32760, CVE-2025-47290, CVE-2026-17106, CVE-2026-50163 and their like): what
    traversals, links, whiteouts, attributes and damage can be made into, one layer upon another."""
    source = Hostile(20261129, f"{place}/outside")
    before = facts(f"{place}/outside")
    left, applied, refused = COUNT, 0, 0
    while left > 0:
        os.mkdir(f"{place}/root")
        fd = os.open(f"{place}/root", os.O_RDONLY | os.O_DIRECTORY)
        try:
            for layer in source.layers():
                left -= 1
                try:
                    apply([layer], fd, limit=1 << 20)
                    applied += 1
                except CowshedError as error:
                    one_line(error)
                    refused += 1
            for top, _, names in os.walk(f"{place}/root"):
                for name in names:
                    attributes = os.listxattr(f"{top}/{name}", follow_symlinks=False)
                    assert not [each for each in attributes if "overlay" in each or "selinux" in each]
        finally:
            os.close(fd)
            shutil.rmtree(f"{place}/root")
        if left % 50 < 5:
            assert facts(f"{place}/outside") == before
    assert applied > COUNT / 20, "the layers are so broken that they show nothing"
    assert refused > COUNT / 20, "the layers are so tame that they show nothing"


def through_a_link(layers, outside):
    """Whether a file is put beneath a link that leads out, as it has come to be when the file comes."""
    links = set()
    for layer in layers:
        try:
            feed = Feed([layer])
            for entry in entries(feed):
                feed.skip(entry.size)
                if entry.kind == SYMLINK and os.fsdecode(entry.link).startswith(outside):
                    links.add(entry.name)
                elif entry.kind == FILE and any(entry.name.startswith(link + b"/") for link in links):
                    return True
        except CowshedError:
            continue
    return False


def test_the_layers_are_what_reaches_the_host_without_its_defence(tmp_path, monkeypatch):
    outside = f"{tmp_path}/outside"
    source = Hostile(20261129, outside)
    assert sum(through_a_link(source.layers(), outside) for _ in range(400)) > 3
    os.mkdir(outside)
    os.mkdir(f"{tmp_path}/root")
    fd = os.open(f"{tmp_path}/root", os.O_RDONLY | os.O_DIRECTORY)
    try:
        layer = LayerTar().symlink("link", outside).file("link/escaped", "evil").bytes()
        apply([layer], fd)
        assert os.listdir(outside) == []
        assert os.path.exists(f"{tmp_path}/root{outside}/escaped")
        opened = "cowshed.layers.apply.open_in_root"
        monkeypatch.setattr(opened, lambda root, path, flags, **_: os.open(path or b".", flags, dir_fd=root))
        apply([layer], fd)
    finally:
        os.close(fd)
    assert os.listdir(outside) == ["escaped"]


# ---------------------------------------------------------------- documents


def places_of(value, way=()):
    """Every place in a JSON value."""
    yield way
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield from places_of(below, (*way, key))


def changed(value, source):
    """A copy of a document with a few places that are gone, something else, or there twice."""
    value = copy.deepcopy(value)
    for _ in range(source.choice((1, 1, 2, 4))):
        way = source.choice(list(places_of(value)))
        if not way:
            continue
        above = value
        for key in way[:-1]:
            above = above[key]
        what = source.randrange(4)
        if what == 0:
            del above[way[-1]]
        elif what == 1 and isinstance(above, list):
            above.append(copy.deepcopy(above[way[-1]]))
        elif what == 2 and isinstance(above, dict):
            above[source.choice(("manifests", "layers", "config", "mediaType", "platform", "urls", "data"))] = (
                above.pop(way[-1])
            )
        else:
            above[way[-1]] = copy.deepcopy(source.choice(JUNK))
    return value


def encoded(value):
    return json.dumps(value, ensure_ascii=True).encode()


class Memory:
    """An origin of documents."""

    def __init__(self, first, blobs):
        self.first, self.blobs_ = first, blobs

    def manifest(self, wanted):
        return (self.first if wanted == "tag" else self.blobs_.get(wanted, b"{}")), ""

    def blob(self, blob, offset=0):
        yield self.blobs_.get(blob.digest, b"")[offset:]


class NoStore:
    def query(self, text, *values):
        return []


def test_documents_of_every_shape_are_understood_or_refused():
    source = random.Random(7)
    image = small()
    first, config = json.loads(image.manifest), json.loads(image.blobs[image.id])
    entry = {"mediaType": manifest.OCI_MANIFEST, "digest": image.digest, "size": len(image.manifest),
             "platform": {"os": "linux", "architecture": host().architecture}}  # fmt: skip
    index = {"schemaVersion": 2, "mediaType": manifest.OCI_INDEX, "manifests": [entry]}
    understood = 0
    for _ in range(COUNT * 3):
        blobs = {**image.blobs, image.digest: image.manifest}
        which = source.randrange(3)
        data = encoded(changed((first, first, index)[which], source))
        if which == 1:  # a configuration that its manifest names rightly
            other = encoded(changed(config, source))
            told = {**first, "config": {**first["config"], "digest": digest(other), "size": len(other)}}
            blobs[digest(other)] = other
            data = encoded(told)
        try:
            found = resolve(NoStore(), Memory(data, blobs), "tag", digest="", platform=None,
                            progress=progress.Progress())  # fmt: skip
        except CowshedError as error:
            one_line(error)
        else:
            understood += 1
            assert len(found.image.diff_ids) == len(found.manifest.layers)
            history(found.image)
        try:
            graph.named(manifest.document(data, "it"), manifest.OCI_MANIFEST if which < 2 else manifest.OCI_INDEX)
        except CowshedError:
            continue
    assert understood > COUNT / 20


class Named:
    def __init__(self, **files):
        self.files = files

    def small(self, name):
        return self.files.get(name)


def test_lists_of_archives_of_every_shape_are_understood_or_refused():
    source = random.Random(8)
    saved = [{"Config": "a.json", "RepoTags": ["a/b:1"], "Layers": ["x/layer.tar", "y/layer.tar"]}]
    index = {"schemaVersion": 2, "manifests": [
        {"mediaType": manifest.OCI_MANIFEST, "digest": "sha256:" + "a" * 64, "size": 5,
         "annotations": {layout._NAMES[1]: "example.org/a:1"}}]}  # fmt: skip
    for _ in range(COUNT):
        contents = Named(**{
            "manifest.json": encoded(changed(saved, source)), "index.json": encoded(changed(index, source)),
            "oci-layout": encoded(changed({"imageLayoutVersion": "1.0.0"}, source)),
        })  # fmt: skip
        for read in (dockerarchive.saved, layout.is_layout, lambda c: layout.images(c, None)):
            try:
                read(contents)
            except CowshedError as error:
                one_line(error)


# ---------------------------------------------------------------- archives of images


def test_damaged_archives_of_images_leave_nothing(store, tmp_path):
    """Bytes of a sound archive changed at random, with checksums that fit: loaded whole or refused whole."""
    source = random.Random(9)
    image = small()
    image.write_layout(f"{tmp_path}/layout", "example.org/a:1")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(f"{tmp_path}/layout", ".")
    data = buffer.getvalue()
    before = store.contents()
    loaded = 0
    for _ in range(COUNT // 8):
        damaged = bytearray(data)
        for _ in range(source.choice((1, 3))):
            at = source.randrange(len(damaged))
            damaged[at] = source.randrange(256)
            block = at // 512 * 512
            if damaged[block + 257 : block + 262] == b"ustar":
                head = damaged[block : block + 512]
                damaged[block + 148 : block + 156] = b"%06o\0 " % (sum(head) - sum(head[148:156]) + 256)
        if source.random() < 0.2:
            del damaged[source.randrange(len(damaged)) :]
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            for each in store.load(f"{tmp_path}/damaged"):
                loaded += 1
                assert each.image.manifest == image.manifest
        except CowshedError as error:
            one_line(error)
            if not loaded:
                assert store.contents() == before
