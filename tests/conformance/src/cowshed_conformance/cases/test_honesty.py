"""H: claims and denials, the random machine, and what the run itself leaves behind."""

from __future__ import annotations

import ctypes
import errno
import io
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from cowshed.storage import api
from cowshed.storage.errors import Unsupported
from cowshed_conformance import fixtures, hoststate, marks, steps
from cowshed_conformance.backing import Backing
from cowshed_conformance.cases.test_discovery import files_below
from cowshed_conformance.changes import read_diff_tree
from cowshed_conformance.harness import Store, held_to_limits, new_id, sync, usage
from cowshed_conformance.machine import explore
from cowshed_conformance.marks import budget, core, faults, full, last
from cowshed_conformance.steps import file
from cowshed_conformance.target import Target

SEQUENCES = int(os.environ.get("COWSHED_RANDOM_SEQUENCES", "0"))  # of H04, in parts where a machine is slow
# Where each claim is tried; a field that is not here fails H01, so that none comes in without a case.
TRIED_BY = {
    "granularity": "Q11",
    "max_depth": "L22",
    "durability": "X03",
    "diff_tree": "H01 D02",
    "changes": "H01 D02",
    "changes_exact": "D06",
    "activation": "H01 U05",
    "quota": "H01 Q01",
    "quota_inodes": "H01 Q06",
    "live_snapshot": "H01 N08",
    "rebase": "L27",
    "transfer_formats": "H01",
    "self_check": "H01 R06",
    "rename_lower_directory": "C09",
    "hard_links_survive_copy_up": "C18",
    "parent_times_survive_copy_up": "C12",
    "time_granularity": "C12",
    "inodes_stable": "C26",
    "stale_reads_after_copy_up": "C25",
    "char_0_0_visible": "C21",
    "nested_subvolumes": "D17",
    "shared_page_cache": "H01",
    "idmapped_mounts": "I07",
    "selinux": "H01 M08",
    "rootless": "B02",
    "acl": "C16",
    "acl_before_copy_up": "C16",
    "sparse": "C23",
    "lost_xattrs": "C15",
    "xattrs_removable": "C15",
    "name_max": "C22",
    "reserved_names": "C22",
    "usage_exact": "Q11",
}
ABILITIES = "diff_tree changes activation quota quota_inodes live_snapshot transfer_formats self_check selinux".split()


@core
def test_H01_every_capability_has_a_case(store: Store) -> None:
    fields = {name for name in api.Capabilities.__annotations__ if not name.startswith("_")}
    assert set(TRIED_BY) == fields


@core
@pytest.mark.parametrize("ability", ABILITIES)
def test_H01_an_ability_works_where_it_is_claimed_and_is_unsupported_where_it_is_denied(
    store: Store, ability: str
) -> None:
    base = store.layer(file("a", b"1"))
    active = store.new(base, file("b", b"2"))
    before = store.living()
    claimed = getattr(store.capabilities, ability) not in (False, (), api.QuotaScope.NONE, api.Consistency.NONE)
    use = USES[ability]
    if claimed:
        use(store, base, active)
        return
    try:
        use(store, base, active)
    except (Unsupported, AttributeError) as error:
        if isinstance(error, AttributeError) and error.name != METHODS.get(ability):
            raise
    else:
        pytest.fail(f"{ability} is denied by the capabilities, and yet it works")
    assert store.living() == before, f"a refused {ability} changed the store"
    assert store.look(active)["b"].size == 1


def _quota(store: Store, base: api.Layer, active: api.Layer) -> None:
    layer = store.prepare(store.plan(base), api.LayerOptions(quota=api.Quota(bytes=4 << 20)))
    with store.mount(layer) as root:

        def write(n: int) -> None:
            steps.do(root, file(f"f{n}", b"x" * (1 << 20)))
            sync(root)  # a file system may only count what it has written

        _until_full(write, 24)
    store.driver.set_quota(layer, api.Quota())  # type: ignore[attr-defined]
    store.driver.remove(layer)


def _quota_inodes(store: Store, base: api.Layer, active: api.Layer) -> None:
    layer = store.prepare(store.plan(base), api.LayerOptions(quota=api.Quota(inodes=100)))
    with store.mount(layer) as root:
        _until_full(lambda n: steps.do(root, file(f"f{n}")), 1000)
    store.driver.remove(layer)


def _until_full(write: Callable[[int], None], most: int) -> None:
    def write_all() -> None:
        for n in range(most):
            write(n)

    with pytest.raises(OSError) as raised, held_to_limits():
        write_all()
    assert raised.value.errno in (errno.EDQUOT, errno.ENOSPC)


def _diff_tree(store: Store, base: api.Layer, active: api.Layer) -> None:
    diff = store.driver.diff_tree(active)  # type: ignore[attr-defined]
    assert [path for path, _ in read_diff_tree(diff)] == [".", "b"]
    top = store.new(base, steps.remove("a"))
    found = dict(read_diff_tree(store.driver.diff_tree(top)))  # type: ignore[attr-defined]
    assert found.get("a") == "gone", "the diff tree does not tell what was deleted"
    store.driver.remove(top)


def _changes(store: Store, base: api.Layer, active: api.Layer) -> None:
    changes = store.driver.changes  # type: ignore[attr-defined]
    below = store.layer(file("gone"), file("mode"), file("same"), parent=base)
    top = store.new(below, steps.remove("gone"), steps.chmod("mode", 0o600), steps.append("a", b"+"), file("new"))
    found = {change.path for change in changes(below, top)}
    assert {b"gone", b"mode", b"a", b"new"} <= found, "changes() misses some"
    store.driver.remove(top)
    store.driver.remove(below)


def _activation(store: Store, base: api.Layer, active: api.Layer) -> None:
    store.driver.activate(active, read_only=True)  # type: ignore[attr-defined]
    store.driver.deactivate(active)  # type: ignore[attr-defined]
    store.driver.deactivate(active)  # type: ignore[attr-defined]


def _snapshot(store: Store, base: api.Layer, active: api.Layer) -> None:
    new = api.Layer(new_id(), store.number + 1, api.Kind.COMMITTED, base)
    data = store.driver.snapshot(active, new, api.Durability.NONE)  # type: ignore[attr-defined]
    taken = api.Layer(new.id, new.number, new.kind, base, data)
    assert store.read(taken, "b") == b"2"
    assert store.has(active)
    store.driver.remove(taken)


def _transfer(store: Store, base: api.Layer, active: api.Layer) -> None:
    formats = store.capabilities.transfer_formats or ("none",)
    for fmt in formats:
        out = io.BytesIO()
        store.driver.send(base, None, fmt, out)  # type: ignore[attr-defined]
        assert out.getvalue()


def _self_check(store: Store, base: api.Layer, active: api.Layer) -> None:
    assert list(store.driver.check([base, active], deep=True)) == []  # type: ignore[attr-defined]


def _selinux(store: Store, base: api.Layer, active: api.Layer) -> None:
    label = "system_u:object_r:container_file_t:s0"
    plan = store.driver.mounts(active, api.MountRequest(read_only=False, selinux_label=label))
    assert any(label in map(str, option) for step in plan.steps for option in getattr(step, "options", ()))


METHODS = {
    "diff_tree": "diff_tree",
    "changes": "changes",
    "activation": "activate",
    "live_snapshot": "snapshot",
    "transfer_formats": "send",
    "self_check": "check",
}
USES: dict[str, Callable[[Store, api.Layer, api.Layer], None]] = {
    "diff_tree": _diff_tree,
    "changes": _changes,
    "activation": _activation,
    "quota": _quota,
    "quota_inodes": _quota_inodes,
    "live_snapshot": _snapshot,
    "transfer_formats": _transfer,
    "self_check": _self_check,
    "selinux": _selinux,
}


@core
def test_H01_looking_at_layers_changes_nothing_and_is_constant(store: Store) -> None:
    base = store.layer(file("a", b"1"))
    active = store.new(base, file("b", b"2"))
    before = files_below(store.root), hoststate.HostState.now()
    plans = {repr(store.mounts(layer, read_only=ro)) for layer in (base, active) for ro in (True, False)}
    for _ in range(10):
        again = {repr(store.mounts(layer, read_only=ro)) for layer in (base, active) for ro in (True, False)}
        assert again == plans, "mounts() gives another plan the second time"
        store.driver.usage(base)
        store.driver.health()
        list(store.driver.scan())
    after = files_below(store.root), hoststate.HostState.now()
    # The kernel may take the device of a mount that has ended before away only now.
    gone = set(before[1].mapped) - set(after[1].mapped)
    before = before[0], replace(before[1], mapped=tuple(name for name in before[1].mapped if name not in gone))
    assert after == before, "looking has a side effect"


@core
def test_H01_usage_is_of_what_was_written(store: Store) -> None:
    layer = store.new(store.layer(file("a", b"1")))
    empty = usage(store, layer)
    store.change(layer, file("big", os.urandom(2 << 20)))
    full_ = usage(store, layer)
    assert empty >= 0
    assert 2 << 20 <= full_ - empty < 3 << 20, f"usage grows from {empty} to {full_} by a file of 2 MiB"
    inodes = store.driver.usage(layer).inodes
    assert inodes is None or inodes > 0
    assert store.driver.usage(layer).exact == store.capabilities.usage_exact


@core
def test_H01_pages_are_shared_exactly_if_that_is_claimed(store: Store) -> None:
    """What one container drops from memory is gone for the other too, if both read the same file of the back end."""
    base = store.layer(file("a", b"1" * (64 << 10)))
    sync(store.root)
    with store.mount(store.new(base)) as one, store.mount(store.new(base)) as two:
        fds = [os.open(f"{root}/a", os.O_RDONLY | os.O_CLOEXEC) for root in (one, two)]
        try:
            for fd in fds:
                os.read(fd, 64 << 10)
            if not any(map(in_memory, fds)):  # the file system has a cache of its own
                marks.claim("shared_page_cache", store.capabilities.shared_page_cache, False, "no page is cached")
                return
            assert all(map(in_memory, fds)), "what was read just now is not in memory"
            os.posix_fadvise(fds[0], 0, 0, os.POSIX_FADV_DONTNEED)
            if in_memory(fds[0]):
                marks.skip("file-system", "pages stay in memory whatever is asked")
            shared = not in_memory(fds[1])
        finally:
            for fd in fds:
                os.close(fd)
    marks.claim("shared_page_cache", store.capabilities.shared_page_cache, shared, "what one drops the other has lost")


def in_memory(fd: int) -> bool:
    """Whether the first page of a file is in memory, as a mapping sees it: that is the file of the back end."""
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(fd, mmap.PAGESIZE, access=mmap.ACCESS_COPY) as mapped:
        at = ctypes.c_char.from_buffer(mapped)
        told = ctypes.c_ubyte()
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(at)), ctypes.c_size_t(1), ctypes.byref(told))
        del at
    if failed:
        marks.skip("kernel", f"mincore: {os.strerror(ctypes.get_errno())}")
    return bool(told.value & 1)


@full
@budget(120)
def test_H04_random_operations_agree_with_a_dictionary(target: Target, backing: Backing) -> None:
    with backing.own(256 << 20) as system:
        explore(target, system.path, examples=SEQUENCES or 120, length=40)


@faults
@budget(1800)
def test_H04_many_random_operations_agree_with_a_dictionary(target: Target, backing: Backing) -> None:
    with backing.own(256 << 20) as system:
        explore(target, system.path, examples=SEQUENCES or 1000, length=60)


@core
@last
def test_H05_the_run_has_left_the_host_as_it_was(backing: Backing) -> None:
    old, now = fixtures.before, hoststate.HostState.now()
    assert old is not None
    mounts = [path for path in now.mounts if not path.startswith(backing.scratch)]
    # Somebody who deletes a directory of the host takes the mounts on it away from all namespaces.
    there = [path for path in old.mounts if os.path.lexists(path.encode().decode("unicode_escape"))]
    assert sorted(mounts) == sorted(there)
    # A loop device goes with its last user, and whoever looks at the host's devices uses each for a moment.
    until = time.monotonic() + 10
    while (left := [loop for loop in hoststate.loops() if backing.scratch not in loop]) and time.monotonic() < until:
        time.sleep(0.02)
    assert left == []
    assert (now.mapped, now.children, now.threads) == (old.mapped, old.children, old.threads)
    assert now.descriptors == old.descriptors, "descriptors were left open"
