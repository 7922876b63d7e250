"""Archives that were dropped: made again bit for bit from their layer, by whoever reads them; and kept where not."""

import gzip
import hashlib
import io
import json
import os
import random
import tarfile
import tracemalloc
import zlib

import pytest
from cowshed_testing.images import Image, LayerTar, digest

from cowshed.errors import ImageError, Tampered
from cowshed.image import packing, reference
from cowshed.image.archives import Archives
from cowshed.image.load import load
from cowshed.image.manifest import Descriptor
from cowshed.image.outgoing import Compressor
from cowshed.image.progress import Progress
from cowshed.image.pull import pull
from cowshed.image.push import push
from cowshed.image.realise import top_layer
from cowshed.image.save import chosen, save
from cowshed.layers import faults
from cowshed.layers.driver import open_driver
from cowshed.layers.layers import Layers
from cowshed.state import images
from cowshed.state.leases import Lease
from cowshed.state.store import open_store

NAME = "example.org/team/app:1"


def layers(seed=7):
    """Two archives with all that is awkward: a file that comes twice, a path through a link, holes, long names."""
    noise = random.Random(seed).randbytes(300_000)
    lower = LayerTar().dir("d").file("d/twice", noise[:70_000]).file("d/twice", noise[70_000:160_000])
    lower.file("d/big", noise).file("d/empty").hardlink("d/again", "d/big").symlink("to", "d")
    lower.file("n" * 90 + "/" + "m" * 90, noise[:5000])
    upper = LayerTar().dir("d").whiteout("d/empty").file("to/through", noise[7:40_000]).file("d/big", noise[::-1])
    return [lower.bytes(), upper.bytes()]


def loaded(store, image, tmp_path, durability="commit", name=NAME):
    image.write_layout(f"{tmp_path}/{image.id[7:19]}", name)
    (done,) = load(store.layers, f"{tmp_path}/{image.id[7:19]}", durability=durability, progress=Progress())
    return done.image


def dropped(store, **wanted):
    archives = Archives(store.store)
    return archives.drop(archives.fates(**wanted))


def blob(store, name):
    return f"{store.root}/blobs/sha256/{name[7:]}"


def recipe(store, name):
    return f"{store.root}/blobs/recipes/sha256-{name[7:]}"


@pytest.fixture(params=["overlay", "copy"])
def kept(request, make_store):
    return make_store("kept", request.param)


@pytest.mark.parametrize("compression", ["gzip", "zstd", ""])
def test_what_is_dropped_is_there_bit_for_bit(kept, tmp_path, compression):
    image = Image(layers(), compression=compression)
    row = loaded(kept, image, tmp_path)
    if compression == "zstd":  # in one piece, whose header tells the size: none of ours
        assert dropped(kept) == {}
        return
    digests = [name for name, _, _ in row.blobs]
    gone = dropped(kept)
    assert set(gone) == set(digests)
    archives = Archives(kept.store)
    for name in digests:
        wanted = image.blobs[name]
        assert not os.path.exists(blob(kept, name))
        assert 0 < gone[name] == len(wanted) - os.stat(recipe(kept, name)).st_size
        assert b"".join(archives.read(name)) == wanted
        for offset in (1, 9, 4096, len(wanted) - 3, len(wanted)):
            assert b"".join(archives.read(name, offset)) == wanted[offset:]
        assert archives.has(Descriptor(name, len(wanted), ""))
    assert dropped(kept) == {}, "there is nothing more"


@pytest.mark.parametrize("kind", ["gzip", "zstd", ""])
def test_what_cowshed_packs_it_can_pack_again(tmp_path, make_store, kind):
    data = layers()[0] * 5
    store = make_store("other")
    with Archives(store.store).create() as new:
        writer = Compressor(new, kind)
        at = 0
        for size in (1, 511, 700_000, 3, 1 << 20, len(data)):  # it is not to depend on the pieces
            writer.write(data[at : at + size])
            at += size
        writer.close()
        found = packing.find(new.path)
        assert found is not None
        assert found.codec in {"gzip": ("isal", "zlib"), "zstd": ("zstd",), "": ("",)}[kind]
        with open(new.path, "rb") as file:
            assert b"".join(packing.packed(found, [data])) == file.read()


def test_headers_of_gzip_are_kept_as_they_stand(tmp_path):
    data = layers()[1]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packer.compress(data) + packer.flush()
    tail = zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(4, "little")
    head = b"\x1f\x8b\x08" + bytes([4 | 8 | 16 | 2]) + b"\1\2\3\4\2\3" + b"\3\0abc" + b"name\0" + b"said\0"
    head += (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little")
    (tmp_path / "x").write_bytes(head + body + tail)
    found = packing.find(str(tmp_path / "x"))
    assert found is not None
    assert found.head == head
    assert b"".join(packing.packed(found, [data])) == head + body + tail


def in_two_members(tar):
    return gzip.compress(tar[:50_000], 6, mtime=0) + gzip.compress(tar[50_000:], 6, mtime=0)


def by_another_compressor(tar):
    packer = zlib.compressobj(6, zlib.DEFLATED, 31, 8, zlib.Z_HUFFMAN_ONLY)
    return packer.compress(tar) + packer.flush()


@pytest.mark.parametrize("pack", [in_two_members, by_another_compressor])
def test_what_nobody_can_pack_again_is_kept(store, tmp_path, pack):
    tar = layers()[1]
    image = Image([tar])
    packed = pack(tar)
    document = json.loads(image.manifest)
    document["layers"][0] |= {"digest": digest(packed), "size": len(packed)}
    image.manifest = json.dumps(document).encode()
    image.digest = digest(image.manifest)
    image.blobs[digest(packed)] = packed
    loaded(store, image, tmp_path)
    (fate,) = Archives(store.store).fates()
    assert (fate.packing, fate.why) == (None, "no compressor here gives its bytes")
    assert dropped(store) == {}
    assert os.path.exists(blob(store, digest(packed)))


def test_what_a_power_cut_could_take_is_kept(store, tmp_path):
    loaded(store, Image(layers()), tmp_path, durability="none")
    assert {fate.why for fate in Archives(store.store).fates()} == {"no driver holds its layer for good"}
    assert dropped(store) == {}


def test_a_recipe_that_is_no_smaller_is_not_kept(store, tmp_path):
    row = loaded(store, Image([LayerTar().file(".wh.x").bytes()]), tmp_path)
    assert dropped(store) == {}
    assert os.path.exists(blob(store, row.blobs[0][0]))
    assert not os.path.exists(recipe(store, row.blobs[0][0]))


def test_holes_are_made_again(store, tmp_path):
    """An old GNU sparse file: of it the archive has only what is stored."""
    piece = random.Random(7).randbytes(100_352)
    head = bytearray(tarfile.TarInfo("sparse").tobuf(tarfile.GNU_FORMAT))
    head[156:157] = b"S"
    head[124:136] = b"%011o\0" % len(piece)
    half = len(piece) // 2
    for n, (offset, length) in enumerate(((4096, half), (1 << 20, half), (2 << 20, 0))):
        head[386 + 24 * n : 410 + 24 * n] = b"%011o\0%011o\0" % (offset, length)
    head[483:495] = b"%011o\0" % (2 << 20)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    archive = bytes(head) + piece + bytes(1024)
    image = Image([archive])
    row = loaded(store, image, tmp_path)
    assert len(dropped(store)) == 1
    assert os.stat(recipe(store, row.blobs[0][0])).st_size < 2000, "its bytes are the layer's"
    assert b"".join(Archives(store.store).read(row.blobs[0][0])) == image.blobs[row.blobs[0][0]]


FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}


def every_kind_of_member(form):
    """Devices, links, long names, attributes and zeros, as one writer of archives writes them."""
    noise = random.Random(form).randbytes(200_000)
    long, extended = form != "ustar", {}
    if form == "pax":
        extended = {"SCHILY.xattr.user.x": "y", "mtime": "1700000000.123456789", "comment": "said"}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=FORMATS[form]) as tar:

        def add(name, data=b"", **fields):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in fields.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))

        add("d", type=tarfile.DIRTYPE, mode=0o755)
        add("d/big", noise, mode=0o4755, pax_headers=extended)
        add("d/hard", type=tarfile.LNKTYPE, linkname="d/big")
        add("d/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
        add("d/disk", type=tarfile.BLKTYPE, devmajor=7, devminor=200)
        add("d/pipe", type=tarfile.FIFOTYPE)
        add("n" * 60 + "/" + ("é" * 90 if long else "m" * 90), noise[:3000])
        add("d/link", type=tarfile.SYMTYPE, linkname="s" * 300 if long else "s")
        add("zeros", bytes(1 << 20) + b"x" + bytes(1 << 20))
        add("d/.wh..wh..opq")
        add("d/after", noise[:513])
    return out.getvalue()


def test_every_kind_of_member(kept, tmp_path):
    image = Image([every_kind_of_member(form) for form in FORMATS])
    row = loaded(kept, image, tmp_path)
    assert len(dropped(kept)) == 3
    for name, _, _ in row.blobs:
        assert b"".join(Archives(kept.store).read(name)) == image.blobs[name]
        assert os.stat(recipe(kept, name)).st_size < 2000, "what files have stands in the layer alone"


def test_memory_does_not_grow_with_the_archive(store, tmp_path):
    """Neither by what its files have nor by what the recipe has itself: the first of two files of one name."""
    noise = random.Random(7).randbytes(10 << 20)
    row = loaded(store, Image([LayerTar().file("a", noise).file("a", noise[::-1]).bytes()], compression=""), tmp_path)
    del noise
    tracemalloc.start()
    try:
        assert len(dropped(store)) == 1
        count = sum(map(len, Archives(store.store).read(row.blobs[0][0])))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert count == row.blobs[0][2]


def test_two_images_of_one_archive(store, tmp_path):
    """It lies on other layers in each; one of them is enough, whichever stays."""
    base, shared = layers()
    first = Image([base, shared])
    second = Image([LayerTar().dir("d").file("d/other", "x").bytes(), shared])
    rows = [loaded(store, each, tmp_path, name=f"{NAME}.{n}") for n, each in enumerate((first, second))]
    dropped(store)
    name = rows[0].blobs[1][0]
    assert name == rows[1].blobs[1][0]
    assert not os.path.exists(blob(store, name))
    for gone in rows:
        with store.store.transaction() as tx:
            images.delete(tx, gone.id)
        store.layers.remove_unreferenced()
        Archives(store.store).collect(store.store)
        if gone is rows[0]:
            assert b"".join(Archives(store.store).read(name)) == first.blobs[name]
    assert os.listdir(f"{store.root}/blobs/recipes") == []


@pytest.mark.parametrize("kind", ["docker-archive", "oci-dir"])
def test_saved_as_if_nothing_was_dropped(kept, make_store, tmp_path, kind):
    row = loaded(kept, Image(layers()), tmp_path)
    before, after = tmp_path / "before", tmp_path / "after"
    for target in (before, after):
        roots = chosen(kept.store, [NAME], lambda word: row)
        save(kept.store, roots, str(target), kind, progress=Progress())
        dropped(kept)
    if kind == "docker-archive":
        assert before.read_bytes() == after.read_bytes()
    other = make_store("more")
    (again,) = other.load(str(after))
    assert again.image.manifest == row.manifest


def test_pushed_as_if_nothing_was_dropped(kept, fake, tmp_path):
    image = Image([*layers(1), *layers(2)])
    row = loaded(kept, image, tmp_path)
    assert len(dropped(kept)) == 4
    parsed = reference.parse(f"{fake.address}/a/b:v1")
    push(kept.store, parsed, [("v1", row)], registries={}, progress=kept.told)
    assert {name: fake.blobs[name] for name in image.blobs} == image.blobs


def test_a_second_driver_makes_the_layer_of_the_first(make_store, tmp_path):
    first = make_store("one")
    row = loaded(first, Image(layers()), tmp_path)
    assert len(dropped(first)) == 2
    second = Layers(first.store, "copy", open_driver(first.store, "copy", {}))
    try:
        assert top_layer(second, row, "commit", Progress()) is not None
    finally:
        second.driver.close()


def test_the_policy_drops_after_a_pull(store, fake, tmp_path):
    image = Image(layers())
    fake.add(image)
    store.store.drops_archives = True
    name = f"{fake.address}/a/b"

    def once():
        return pull(store.layers, reference.parse(name), registries={}, durability="commit", progress=store.told,
                    gate=None)  # fmt: skip

    row = once().image
    assert [os.path.exists(blob(store, each[0])) for each in row.blobs] == [False, False]
    fake.requests.clear()
    once()
    assert not any("/blobs/" in str(request) for request in fake.requests), "what can be made again is not fetched"


def test_leased_archives_stay(store, tmp_path):
    row = loaded(store, Image(layers()), tmp_path)
    first = row.blobs[0][0]
    with Lease(store.store, [first]):
        assert list(dropped(store)) == [row.blobs[1][0]]
    assert os.path.exists(blob(store, first))
    assert not os.path.exists(recipe(store, first))


def test_the_recipe_goes_with_the_image(store, tmp_path):
    row = loaded(store, Image(layers()), tmp_path)
    dropped(store)
    with store.store.transaction() as tx:
        images.delete(tx, row.id)
    assert Archives(store.store).collect(store.store) > 0
    assert os.listdir(f"{store.root}/blobs/recipes") == []
    store.layers.remove_unreferenced()


def changed_layer(store, driver=""):
    """Other bytes in a file of the lower layer, behind the driver's back."""
    (path,) = [os.path.join(top, "big") for top, _, names in os.walk(f"{store.root}/drivers/{driver}") if "big" in names
               and os.path.exists(os.path.join(top, "twice"))]  # fmt: skip
    with open(path, "r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))


def test_a_layer_that_has_changed_is_told_before_the_end(store, tmp_path):
    image = Image(layers())
    row = loaded(store, image, tmp_path)
    dropped(store)
    changed_layer(store)
    first = row.blobs[0][0]
    came = []
    with pytest.raises(Tampered, match="its layer or its recipe has changed"):
        came.extend(Archives(store.store).read(first))
    assert len(b"".join(came)) < len(image.blobs[first])
    assert not Archives(store.store).restore(first)


def test_nobody_gets_another_archive_of_a_layer_that_has_changed(store, fake, tmp_path):
    image = Image(layers())
    row = loaded(store, image, tmp_path)
    dropped(store)
    changed_layer(store)
    with pytest.raises(Tampered, match="its layer or its recipe has changed"):
        push(store.store, reference.parse(f"{fake.address}/a/b:v1"), [("v1", row)], registries={}, progress=store.told)
    assert row.blobs[0][0] not in fake.blobs
    assert "v1" not in fake.manifests
    roots = chosen(store.store, [NAME], lambda word: row)
    with pytest.raises(Tampered):
        save(store.store, roots, str(tmp_path / "saved"), "docker-archive", progress=Progress())
    assert not (tmp_path / "saved").exists()
    other = Layers(store.store, "copy", open_driver(store.store, "copy", {}))
    try:
        with pytest.raises(ImageError, match="has changed"):
            top_layer(other, row, "commit", Progress())
        assert other.by_chain_id(row.chain_ids[0]) is None
    finally:
        other.driver.close()


def test_a_layer_of_another_driver_helps(store, tmp_path):
    row = loaded(store, Image(layers()), tmp_path)
    dropped(store)
    other = Layers(store.store, "copy", open_driver(store.store, "copy", {}))
    try:
        top_layer(other, row, "commit", Progress())
    finally:
        other.driver.close()
    changed_layer(store, "overlay")
    archives = Archives(store.store)
    first = row.blobs[0][0]
    with pytest.raises(Tampered):
        list(archives.read(first))
    assert archives.restore(first)
    assert os.path.exists(blob(store, first))


def test_a_compressor_that_has_changed_is_named(store, tmp_path, monkeypatch):
    row = loaded(store, Image(layers()), tmp_path)
    dropped(store)
    made = packing._packer

    def other(how):
        return zlib.compressobj(0, zlib.DEFLATED, -15) if how.codec == "zlib" else made(how)

    monkeypatch.setattr(packing, "_packer", other)
    with pytest.raises(Tampered, match=r"packed by zlib .* at level 1, and this is zlib"):
        list(Archives(store.store).read(row.blobs[0][0]))


def test_damaged_recipes(store, tmp_path):
    """Any byte of a recipe may be another: it is told, and nothing else comes out than the archive."""
    image = Image(layers())
    row = loaded(store, image, tmp_path)
    dropped(store)
    name = row.blobs[1][0]
    archives = Archives(store.store)
    assert archives.fault(name) == ""
    path = recipe(store, name)
    with open(path, "rb") as file:
        good = file.read()
    for at in range(0, len(good), 19):
        with open(path, "wb") as file:
            file.write(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        assert archives.fault(name)
        try:
            assert b"".join(archives.read(name)) == image.blobs[name]
        except ImageError:
            continue
    for cut in (0, 5, 100, len(good) // 2, len(good) - 1):
        with open(path, "wb") as file:
            file.write(good[:cut])
        assert archives.fault(name)


STEPS = ("drop.made", "drop.published", "drop.synced", "drop.deleted")


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_each_step(store, tmp_path, step):
    """The archive is there or can be made again at each moment, and the next try ends it."""
    image = Image(layers())
    row = loaded(store, image, tmp_path)
    pid = os.fork()
    if pid == 0:
        try:
            mine = open_store(store.root, f"{tmp_path}/run")
            faults.inject(f"kill@{step}")
            archives = Archives(mine)
            archives.drop(archives.fates())
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    archives = Archives(store.store)
    for name, _, _ in row.blobs:
        assert hashlib.sha256(b"".join(archives.read(name))).hexdigest() == name[7:]
    dropped(store)
    assert not os.path.exists(blob(store, row.blobs[0][0]))
    assert not os.path.exists(blob(store, row.blobs[1][0]))
    archives.prune_partials()
    assert os.listdir(f"{store.root}/blobs/partial") == []


def test_two_commands_that_drop_the_same(store, tmp_path):
    image = Image(layers())
    row = loaded(store, image, tmp_path)
    one, other = Archives(store.store), Archives(store.store)
    fates, later = one.fates(), other.fates()
    assert len(one.drop(fates)) == 2
    assert other.drop(later) == {}
    for name, _, _ in row.blobs:
        assert b"".join(other.read(name)) == image.blobs[name]
    one.restore(row.blobs[0][0])
    assert list(other.drop(later)) == [row.blobs[0][0]]


def test_recipes_of_archives_that_are_there_go(store, tmp_path):
    row = loaded(store, Image(layers()), tmp_path)
    dropped(store)
    archives = Archives(store.store)
    first, second = (name for name, _, _ in row.blobs)
    assert archives.restore(first)
    archives.tidy()
    assert not os.path.exists(recipe(store, first))
    assert os.path.exists(recipe(store, second))
    assert b"".join(archives.read(second))


def test_what_is_loaded_again_is_there_again(store, tmp_path):
    row = loaded(store, Image(layers()), tmp_path)
    dropped(store)
    load(store.layers, f"{tmp_path}/{row.id[7:19]}", durability="commit", progress=Progress())
    assert [os.path.exists(blob(store, name)) for name, _, _ in row.blobs] == [True, True]


def test_what_was_dropped_of_a_layer_that_is_lost_is_not_here(make_store, fake, tmp_path):
    store = make_store("lost")
    image = Image(layers())
    fake.add(image)
    row = pull(store.layers, reference.parse(f"{fake.address}/a/b"), registries={}, durability="commit",
               progress=store.told, gate=None).image  # fmt: skip
    dropped(store)
    (lowest,) = store.query("select id from layers where parent is null")[0]
    os.rename(f"{store.root}/drivers/overlay/committed/{lowest}", f"{tmp_path}/away")
    assert [Archives(store.store).has(Descriptor(name, size, "")) for name, _, size in row.blobs] == [False, False]
    with pytest.raises(ImageError, match="was dropped, and no driver has its layer"):
        list(Archives(store.store).read(row.blobs[0][0]))
    pull(store.layers, reference.parse(f"{fake.address}/a/b"), registries={}, durability="commit", progress=store.told,
         gate=None)  # fmt: skip
    assert [os.path.exists(blob(store, name)) for name, _, _ in row.blobs] == [True, True]


def test_an_archive_of_docker_that_has_no_packed_layers(store, tmp_path):
    """As docker wrote it before version 25: the image that is here keeps its manifest, and archives stay dropped."""
    image = Image(tars := layers())
    row = loaded(store, image, tmp_path)
    dropped(store)
    listed = [{"Config": f"{image.id[7:]}.json", "RepoTags": [NAME], "Layers": [f"{n}/layer.tar" for n in range(2)]}]
    with tarfile.open(tmp_path / "old.tar", "w") as tar:
        for name, data in {
            "0/layer.tar": tars[0], "1/layer.tar": tars[1], f"{image.id[7:]}.json": image.blobs[image.id],
            "manifest.json": json.dumps(listed).encode(),
        }.items():  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (again,) = load(store.layers, f"{tmp_path}/old.tar", durability="commit", progress=Progress())
    assert again.image.manifest == row.manifest
    assert [os.path.exists(blob(store, name)) for name, _, _ in row.blobs] == [False, False]


def test_a_codec_that_is_not_here():
    """A newer Cowshed, or another machine, may have packed an archive."""
    how = packing.Packing("codec-of-tomorrow", 3)
    with pytest.raises(ImageError, match="compressed by codec-of-tomorrow, which is not here"):
        list(packing.packed(how, [b"x"]))
