"""Q: what layers use, and limits on it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import uuid

import pytest

from cowshed.storage import api
from cowshed.storage.errors import StorageError, Unsupported
from cowshed.storage.kit.trees import measure_tree
from cowshed_conformance import backing as places
from cowshed_conformance import crash, marks, steps
from cowshed_conformance.backing import Backing
from cowshed_conformance.harness import Store, directory_of, held_to_limits, new_id, sync, usage
from cowshed_conformance.marks import budget, core, full
from cowshed_conformance.namespaces import OUTER, user_namespace
from cowshed_conformance.steps import chown, directory, file, remove
from cowshed_conformance.target import Target
from cowshed_linux import process

MIB = 1 << 20


def limited(store: Store, limit: int, parent: api.Layer | None = None) -> api.Layer:
    """A layer with a limit in bytes; where the driver has no limits it must say so and make nothing."""
    options = api.LayerOptions(quota=api.Quota(bytes=limit))
    if store.capabilities.quota is api.QuotaScope.NONE:
        refused(store, options, parent)
    return store.prepare(store.plan(parent), options)


def refused(store: Store, options: api.LayerOptions, parent: api.Layer | None = None) -> None:
    planned, before = store.plan(parent), store.living()
    with pytest.raises(Unsupported) as raised:
        store.driver.prepare(planned, options)
    assert raised.value.remedy
    assert raised.value.layer == planned.id
    assert store.living() == before, "a refused limit has left a layer"
    store.purge_all()
    marks.skip("capability", "quota is denied, and a limit is refused as Unsupported")


def fill(root: str, mebibytes: int, name: str = "f") -> int:
    """Write file by file, each synced; how many MiB were taken."""
    for n in range(mebibytes):
        try:
            with held_to_limits():
                steps.do(root, file(f"{name}{n}", os.urandom(MIB)))
                sync(root)
        except OSError as error:
            if error.errno not in (errno.EDQUOT, errno.ENOSPC):
                raise
            return n
    return mebibytes


@core
@pytest.mark.parametrize("where", ["alone", "on another"])
def test_Q01_writing_over_the_limit_fails_and_what_is_deleted_can_be_written_again(store: Store, where: str) -> None:
    layer = limited(store, 16 * MIB, store.layer(file("below", b"1")) if where == "on another" else None)
    with store.mount(layer) as root:
        assert fill(root, 8) == 8, "half of the limit does not fit"
        taken = 8 + fill(root, 16, "g")
        assert 12 <= taken <= 16, f"a limit of 16 MiB let {taken} MiB in"
        for name in os.listdir(root):
            if name != "below":  # to delete what lies below may take an inode, which a full layer does not have
                os.unlink(f"{root}/{name}")
        sync(root)
        until = time.monotonic() + 15  # file systems that never overwrite free in the background
        while (again := fill(root, 8, "h")) < 8 and time.monotonic() < until:
            time.sleep(0.5)
        assert again == 8, "what was deleted is not free again"


@core
def test_Q03_a_limit_counts_what_is_declared(store: Store) -> None:
    base = store.layer(*[file(f"b{n}", os.urandom(MIB)) for n in range(24)])
    layer = limited(store, 8 * MIB, base)
    with store.mount(layer) as root:
        taken = fill(root, 4)
    own = store.capabilities.quota is api.QuotaScope.OWN
    assert taken == (4 if own else 0), f"a limit of 8 MiB on 24 MiB of parents, counting {store.capabilities.quota}"


@core
def test_Q04_a_limit_is_not_inherited(store: Store) -> None:
    parent = store.commit(limited(store, 4 * MIB))
    with store.mount(store.new(parent)) as root:
        assert fill(root, 8) == 8


@core
@pytest.mark.parametrize("below", ["nothing", "a layer"])
def test_Q05_a_limit_is_raised_lowered_and_lifted_on_a_mounted_layer(store: Store, below: str) -> None:
    layer = limited(store, 4 * MIB, None if below == "nothing" else store.layer(file("below", b"1")))
    driver = store.driver
    assert api.has_quota(driver)
    with store.mount(layer) as root:
        assert fill(root, 16) < 8
        driver.set_quota(layer, api.Quota(bytes=12 * MIB))
        assert fill(root, 2, "more") == 2
        driver.set_quota(layer, api.Quota(bytes=MIB))
        assert fill(root, 2, "less") == 0, "a limit below what is used lets more in"
        driver.set_quota(layer, api.Quota())
        assert fill(root, 16, "free") == 16


@core
def test_Q06_a_limit_on_inodes(store: Store) -> None:
    options = api.LayerOptions(quota=api.Quota(inodes=64))
    if not store.capabilities.quota_inodes:
        refused(store, options)
    with store.mount(store.prepare(store.plan(), options)) as root:
        with pytest.raises(OSError) as raised, held_to_limits():
            steps.do(root, *[file(f"f{n}") for n in range(80)])
        assert raised.value.errno in (errno.EDQUOT, errno.ENOSPC)


@full
def test_Q07_holes_are_free_and_files_that_are_open_count_after_their_deletion(store: Store) -> None:
    layer = limited(store, 8 * MIB)
    with store.mount(layer) as root:
        steps.do(root, file("sparse"), steps.truncate("sparse", 1 << 30))
        assert fill(root, 2) == 2, "a hole counts"
        fd = os.open(f"{root}/open", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with held_to_limits():
                for _ in range(4):
                    os.write(fd, os.urandom(MIB))
                os.fsync(fd)
            os.unlink(f"{root}/open")
            assert fill(root, 4, "more") < 4, "a deleted file that is still open does not count"
        finally:
            os.close(fd)
        sync(root)
        store.driver.usage(layer)  # a back end that counts by groups of what was done ends the present one to tell
        assert fill(root, 2, "after") == 2, "a deleted file counts when nobody has it open any more"


@full
def test_Q08_root_of_a_container_does_not_get_out_of_its_limit(store: Store) -> None:
    layer = limited(store, 8 * MIB)
    with store.mount(layer) as root, user_namespace() as userns:
        steps.do(root, directory("d"), chown("d", OUTER, OUTER), chown(".", OUTER, OUTER))

        def container() -> None:
            process.setns(userns, process.CLONE_NEWUSER)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            steps.do(root, directory("d/e"), steps.rename("d/e", "e"))
            with contextlib.suppress(OSError):  # where there are none
                steps.do(root, steps.subvolume("d/s"))
            names = [name for name in ("d", "e", "d/s") if os.path.isdir(f"{root}/{name}")]
            for name in names:
                fd = os.open(f"{root}/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                # FS_IOC_FSSETXATTR with project 0 and nothing inherited: it may be refused, but never help
                with contextlib.suppress(OSError):
                    fcntl.ioctl(fd, 0x401C5820, bytes(28))
                os.close(fd)
            taken = sum(fill(f"{root}/{name}", 8) for name in reversed(names))
            assert taken <= 8, f"a container with a limit of 8 MiB has written {taken}"

        crash.in_child(container)


@full
def test_Q09_a_limit_goes_with_its_layer(store: Store) -> None:
    layer = limited(store, 4 * MIB)
    with store.mount(layer) as root:
        assert fill(root, 2) == 2
    store.driver.remove(layer)
    store.purge_all()
    assert store.scan(api.ObjectKind.AUXILIARY) == [], "what limited a layer that is gone is still there"
    again = store.prepare(api.Layer(new_id(), layer.number, api.Kind.ACTIVE, None))
    with store.mount(again) as root:
        assert fill(root, 8) == 8, "a layer has the limit of another that had its number"


@full
@budget(240)
def test_Q09_killed_at_any_point_a_limited_layer_is_made_again_and_no_limit_stays_behind(light: Store) -> None:
    store, options = light, api.LayerOptions(quota=api.Quota(bytes=2 * MIB))
    if store.capabilities.quota is api.QuotaScope.NONE:
        refused(store, options)

    def prepare(layer: api.Layer) -> crash.Work:
        return lambda store: dict(store.driver.prepare(layer, options))

    for n, point in enumerate(crash.points(store, prepare(store.plan()))):
        with Store(store.target, f"{store.root}-{n}") as other:  # the first limit of a store may be the hardest to set
            layer = other.plan()
            assert crash.kill_at(other, prepare(layer), point), f"{point} was not reached again"
            other.prepare(layer, options)
            with other.mount(layer) as root:
                assert fill(root, 4) < 4, f"killed at {point}: made again without its limit"
            other.driver.remove(layer)
            other.purge_all()
            assert other.scan(api.ObjectKind.AUXILIARY) == [], f"killed at {point}: the limit stays behind"
            other.discard()
    for point in crash.points(store, crash.purge()):
        store.driver.remove(store.prepare(store.plan(), options))
        crash.kill_at(store, crash.purge(), point)
        store.purge_all()
    left = {it.number for it in store.scan(api.ObjectKind.AUXILIARY)}
    assert left <= {1}, f"purge() was killed, and limits of layers that are gone stay: {left}"


@full
def test_Q10_layers_and_stores_that_are_made_at_once_have_limits_of_their_own(target: Target, backing: Backing) -> None:
    with contextlib.ExitStack() as until:
        stores = []
        for _ in range(3):
            store = Store(target, backing.place())
            until.callback(store.discard)
            stores.append(store)
        if stores[0].capabilities.quota is api.QuotaScope.NONE:
            marks.skip("capability", "quota is denied")
        plans = [(store, store.plan()) for store in stores for _ in range(2)]
        options = api.LayerOptions(quota=api.Quota(bytes=4 * MIB))

        def prepare(store: Store, layer: api.Layer) -> int:
            return crash.start(lambda: store.open().prepare(layer, options))

        for pid in [prepare(store, layer) for store, layer in plans]:
            crash.finish(pid)
        for store, layer in plans:
            with store.mount(layer) as root:
                assert fill(root, 3) == 3, "two layers count on one limit"
                assert fill(root, 3, "more") < 3, "a layer has no limit"


@full
def test_Q10_two_stores_and_what_was_removed_have_limits_of_their_own(target: Target, store: Store) -> None:
    first = limited(store, 8 * MIB)
    with Store(target, f"{store.root}.other") as other:
        second = limited(other, 8 * MIB)
        assert first.number == second.number
        with store.mount(first) as one, other.mount(second) as two:
            assert (fill(one, 6), fill(two, 6)) == (6, 6), "two stores count on one limit"
        store.driver.remove(first)
        with store.mount(limited(store, 8 * MIB)) as root:
            assert fill(root, 6) == 6, "what was removed and not yet deleted counts on the next layer's limit"
        other.discard()


@core
def test_Q11_usage_follows_what_is_written_and_deleted(store: Store) -> None:
    layer = store.new()
    empty = usage(store, layer)
    assert 0 <= empty < 256 << 10, f"an empty layer uses {empty} bytes"
    # Where blocks of a device are shared, the layer has a file system of its own, with a journal that it writes.
    own = MIB if store.capabilities.granularity is api.Granularity.BLOCK else 0
    store.change(layer, file("big", os.urandom(10 * MIB)))
    grown = usage(store, layer) - empty
    assert 10 * MIB <= grown <= 10 * MIB + (512 << 10) + own, f"10 MiB more are {grown} bytes"
    store.change(layer, remove("big"))
    until = time.monotonic() + 15
    while (left := usage(store, layer) - empty) >= (256 << 10) + own and time.monotonic() < until:
        time.sleep(0.1)  # some file systems free what was deleted in the background
    assert left < (256 << 10) + own, f"{left} bytes stay when all is deleted"


@core
def test_Q11_sparse_files_and_second_names_count_once(store: Store) -> None:
    layer = store.new()
    empty = usage(store, layer)
    store.change(layer, file("a", os.urandom(2 * MIB)), steps.link("a", "b"), file("s"), steps.truncate("s", 1 << 30))
    grown = usage(store, layer) - empty
    assert 2 * MIB <= grown < 3 * MIB, f"one file of 2 MiB with two names and a hole of 1 GiB are {grown} bytes"


@full
@budget(60)
def test_Q11_exact_usage_is_the_space_that_comes_back(target: Target, backing: Backing) -> None:
    with backing.own(192 * MIB, backing.loop_kind()) as system, Store(target, f"{system.path}/store") as store:
        if not store.capabilities.usage_exact:
            marks.skip("capability", "usage_exact is denied")
        base = store.layer(file("below", os.urandom(8 * MIB)), *[file(f"small{n}", b"x" * 3000) for n in range(500)])
        layer = store.new(
            base, file("own", os.urandom(6 * MIB)), file("hole"), steps.truncate("hole", 64 * MIB),
            steps.append("below", b"+"), *[remove(f"small{n}") for n in range(300)],
            *[file(f"more{n}", b"y" * 3000) for n in range(500)],
        )  # fmt: skip
        said, before = usage(store, layer), used(system)
        assert store.driver.usage(layer).exact
        store.driver.remove(layer)
        store.purge_all()
        until = time.monotonic() + 30
        while abs(before - used(system) - said) > max(said // 10, MIB // 2) and time.monotonic() < until:
            time.sleep(0.1)
        back = before - used(system)
        assert abs(back - said) <= max(said // 10, MIB // 2), f"{said} bytes were said to come back, {back} did"


def used(system: places.FileSystem) -> int:
    sync(system.path)
    return system.used()


@core
def test_Q12_usage_leaves_out_what_is_shared_with_parents(store: Store) -> None:
    base = store.layer(file("big", os.urandom(4 * MIB)))
    child = store.new(base)
    copied = store.capabilities.granularity is api.Granularity.TREE
    own = usage(store, child)
    assert own >= 4 * MIB if copied else own < 256 << 10, f"a child of a layer of 4 MiB uses {own} bytes"
    store.change(child, steps.append("big", b"+"))
    grown = usage(store, child) - own
    most = {api.Granularity.FILE: 5 * MIB, api.Granularity.TREE: MIB}.get(store.capabilities.granularity, MIB)
    least = 4 * MIB if store.capabilities.granularity is api.Granularity.FILE else 0
    assert least <= grown <= most, f"one byte more in a file of 4 MiB costs {grown} bytes"
    assert usage(store, base) >= 4 * MIB


@core
def test_Q12_layers_use_no_more_in_sum_than_the_file_system_has_given(target: Target, backing: Backing) -> None:
    with backing.own(128 * MIB) as system:
        before = system.used()
        store = Store(target, f"{system.path}/store")
        if not store.capabilities.usage_exact and system.kind in ("xfs", "btrfs"):
            store.driver.close()
            marks.skip("file-system", f"{system.kind} shares extents, and usage_exact is denied")
        base = store.layer(file("a", os.urandom(4 * MIB)))
        layers = [base, *(store.new(base, file("own", os.urandom(n * MIB))) for n in range(1, 4))]
        total = sum(usage(store, layer) for layer in layers)
        given = system.used() - before
        store.driver.close()
        assert 10 * MIB <= total <= given + (64 << 10), f"the layers say {total} bytes, the file system {given}"


@core
def test_Q12_usage_that_is_exact_is_what_the_files_of_the_layer_take(store: Store) -> None:
    if not store.capabilities.usage_exact:
        marks.skip("capability", "usage_exact is denied")
    if store.capabilities.granularity is not api.Granularity.FILE:
        marks.skip("plan", "the layer's files share extents with its parent's: Q11 holds it to what comes back")
    base = store.layer(file("big", os.urandom(2 * MIB)), *[file(f"f{n}", b"x" * 5000) for n in range(50)])
    layer = store.new(base, file("own", os.urandom(MIB)), steps.remove("f1"), steps.chmod("f2", 0o600))
    for one in (base, layer):
        said = usage(store, one)
        found = store.driver.usage(one)
        assert found.exact
        own = directory_of(store.mounts(one, read_only=True))
        if not own:
            marks.skip("file-system", "the layer's own files lie in no directory of the host")
        size, inodes = measure_tree(own)
        assert 0 <= said - size <= 64 << 10, f"usage says {said} bytes, the layer's files take {size}"
        assert found.inodes in (None, inodes), f"usage says {found.inodes} inodes, the layer has {inodes}"


@core
def test_Q13_inodes_are_counted_or_unknown(store: Store) -> None:
    layer = store.new()
    before = store.driver.usage(layer).inodes
    assert before is None or before >= 0
    store.change(layer, *[file(f"f{n}") for n in range(100)])
    after = store.driver.usage(layer).inodes
    assert (before is None) == (after is None)
    if before is not None and after is not None:
        assert after - before == 100
    committed = store.commit(layer)
    found = store.driver.usage(committed)
    assert found.own >= 0
    assert found.inodes is None or found.inodes >= 100
    with pytest.raises((StorageError, OSError)):
        store.driver.usage(store.plan())


@full
def test_Q14_the_state_of_quota_on_the_file_system_is_not_touched(target: Target, backing: Backing) -> None:
    with backing.own() as system:

        def state() -> tuple[str, bool]:
            on = system.kind == "btrfs" and os.path.isdir(f"/sys/fs/btrfs/{btrfs_id(system.path)}/qgroups")
            return places.fs_type(system.path), on

        before = state()
        store = Store(target, f"{system.path}/store")
        layer = store.layer(file("a", b"1"), parent=store.layer(file("b")))
        store.driver.remove(layer)
        store.purge_all()
        if store.capabilities.quota is api.QuotaScope.NONE:
            assert state() == before, "a driver without quota changed the file system's"
        store.discard()
        assert state() == before, "what was switched on for a store stays on without it"


def btrfs_id(path: str) -> str:
    """The name of a btrfs file system in /sys/fs/btrfs."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        told = bytes(fcntl.ioctl(fd, 0x8400941F, bytes(1024)))  # BTRFS_IOC_FS_INFO
    finally:
        os.close(fd)
    return str(uuid.UUID(bytes=told[16:32]))
