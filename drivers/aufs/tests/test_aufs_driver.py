"""What the driver does with its directories, and what its probe says where aufs cannot be."""

import contextlib
import os
import stat

import pytest

from cowshed.layers.host import EngineHost
from cowshed.storage import api
from cowshed.storage.errors import LayerId, TooDeep, Unsupported
from cowshed_conformance.changes import read_diff_tree
from cowshed_driver_aufs import branches, limit, plugin
from cowshed_driver_aufs.probe import probe

PAST = 1_234_567_890_123_456_789
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners and trusted attributes need root")


def numbered(count, kind=api.Kind.COMMITTED, parent=None):
    layer = parent
    for n in range(1, count + 1):
        layer = api.Layer(LayerId(f"{n:032x}"), n, kind, layer)
    return layer


@pytest.fixture
def store(tmp_path):
    root, host = str(tmp_path / "store"), EngineHost()
    driver = plugin.open(root, {}, host, store=plugin.init(root, {}, host))
    yield driver
    driver.close()


def prepared(store, number, parent=None):
    layer = api.Layer(LayerId(f"{number:032x}"), number, api.Kind.ACTIVE, parent)
    store.prepare(layer, api.LayerOptions(durable=False))
    return layer


def committed(store, active):
    new = api.Layer(active.id, active.number, api.Kind.COMMITTED, active.parent)
    store.commit(active, new, api.Durability.NONE)
    return new


# ---------------------------------------------------------------- branches


def as_aufs_leaves_it(branch):
    """Changes and bookkeeping of a container, as a real aufs left them; the names of the changes."""
    branches.furnish(branch)
    marker = f"{branch}/.wh..wh.aufs"
    for path in ("d", "d/opaque", "d/.wh..wh.sub.0042"):
        os.mkdir(f"{branch}/{path}")
    for path in (".wh.gone", "d/.wh.too", "d/opaque/.wh..wh..opq"):
        os.link(marker, f"{branch}/{path}")
    for path in ("new", "d/changed", "d/.wh..wh.file.0a1b", "d/.wh..wh.sub.0042/in", ".wh..wh.hino"):
        with open(f"{branch}/{path}", "w") as file:
            file.write("x")
    os.link(f"{branch}/d/changed", f"{branch}/.wh..wh.plnk/77.88")
    for path in ("d/opaque", "d", "."):
        os.utime(f"{branch}/{path}", ns=(PAST, PAST))
    return {".wh.gone", "new", "d", "d/.wh.too", "d/changed", "d/opaque", "d/opaque/.wh..wh..opq"}


def content(branch):
    found = set()
    for where, folders, files in os.walk(branch):
        found.update(os.path.relpath(f"{where}/{name}", branch) for name in (*folders, *files))
    return found


TOP = {".wh..wh.aufs", ".wh..wh.plnk", ".wh..wh.orph"}  # invisible; they stay, empty


def test_bookkeeping_goes_at_every_depth_and_changes_stay(tmp_path):
    branch = str(tmp_path)
    kept = as_aufs_leaves_it(branch)
    for _ in range(2):
        branches.tidy(branch)
        assert content(branch) == kept | TOP
    for path in (".", "d", "d/opaque"):
        assert os.stat(f"{branch}/{path}").st_mtime_ns == PAST, f"{path} is younger now"


def test_a_committed_layer_has_no_bookkeeping(store):
    active = prepared(store, 1)
    kept = as_aufs_leaves_it_in(store, active)
    layer = committed(store, active)
    assert content(store.diff_tree(layer).directory) == kept | TOP
    seen = {path for path, _ in read_diff_tree(store.diff_tree(layer))}
    assert seen == {".", "new", "gone", "d", "d/too", "d/changed", "d/opaque"}, "bookkeeping is taken for changes"


def as_aufs_leaves_it_in(store, active):
    branch = store.diff_tree(active).directory
    for name in os.listdir(branch):
        path = f"{branch}/{name}"
        os.unlink(path) if os.path.isfile(path) else os.rmdir(path)
    return as_aufs_leaves_it(branch)


def test_the_first_mount_of_a_layer_has_nothing_to_make(store):
    branch = store.diff_tree(prepared(store, 1)).directory
    marker = os.lstat(f"{branch}/.wh..wh.aufs")
    assert stat.S_ISREG(marker.st_mode)
    assert stat.S_IMODE(marker.st_mode) & 0o222 == 0
    for name in (".wh..wh.plnk", ".wh..wh.orph"):
        assert stat.S_IMODE(os.lstat(f"{branch}/{name}").st_mode) == 0o700


@needs_root
def test_the_root_of_a_layer_is_as_that_of_the_one_below(store):
    below = prepared(store, 1)
    branch = store.diff_tree(below).directory
    os.chown(branch, 5, 6)
    os.chmod(branch, 0o1711)
    os.setxattr(branch, "trusted.mine", b"1")
    os.utime(branch, ns=(PAST, PAST))
    found = store.diff_tree(prepared(store, 2, committed(store, below))).directory
    status = os.stat(found)
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (5, 6, 0o1711)
    assert status.st_mtime_ns == PAST
    assert os.getxattr(found, "trusted.mine") == b"1"


# ---------------------------------------------------------------- plans


def test_a_plan_has_each_branch_once_and_the_layer_on_top(store):
    one = committed(store, prepared(store, 1))
    two = committed(store, prepared(store, 2, one))
    top = prepared(store, 3, two)
    (step,) = store.mounts(top, api.MountRequest(read_only=False)).steps
    assert [os.path.basename(os.path.dirname(path)) for path in step.branches] == [top.id, two.id, one.id]
    assert step.writable
    assert {"acl", "dirperm1"} <= {name for name, _ in step.options}
    for layer, read_only in ((top, True), (two, False), (two, True)):
        (step,) = store.mounts(layer, api.MountRequest(read_only)).steps
        assert not step.writable


def test_a_layer_with_nothing_below_is_mounted_by_aufs_too(store):
    """A plain directory would let its users make the names that are whiteouts in the layers above."""
    (step,) = store.mounts(prepared(store, 1), api.MountRequest(read_only=False)).steps
    assert isinstance(step, api.Aufs)


def test_an_active_layer_has_one_mount(store):
    assert store.mounts(prepared(store, 1), api.MountRequest(read_only=False)).exclusive


def test_limits_are_refused(store):
    with pytest.raises(Unsupported) as raised:
        store.prepare(numbered(1, api.Kind.ACTIVE), api.LayerOptions(quota=api.Quota(bytes=1 << 20)))
    assert "goes past" in str(raised.value)
    assert raised.value.remedy
    with pytest.raises(Unsupported):
        store.mounts(prepared(store, 1), api.MountRequest(read_only=False, selinux_label="x"))


def test_one_layer_more_than_the_kernel_takes(store, monkeypatch):
    monkeypatch.setattr(limit, "branch_limit", lambda: 127)
    assert store.capabilities.max_depth == 126
    active = api.Layer(LayerId("f" * 32), 999, api.Kind.ACTIVE, numbered(126))
    new = api.Layer(active.id, active.number, api.Kind.COMMITTED, active.parent)
    with pytest.raises(TooDeep) as raised:
        store.commit(active, new, api.Durability.NONE)
    assert raised.value.remedy


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("CONFIG_AUFS_FS=y\nCONFIG_AUFS_BRANCH_MAX_127=y\n# CONFIG_AUFS_BRANCH_MAX_511 is not set\n", 127),
        ("# CONFIG_AUFS_BRANCH_MAX_127 is not set\nCONFIG_AUFS_BRANCH_MAX_511=y\n", 511),
        ("CONFIG_AUFS_BRANCH_MAX_32767=y\n", 1023),
        ("CONFIG_EXT4_FS=y\n", 0),
        ("", 0),
    ],
)
def test_the_limit_that_a_configuration_names(text, wanted):
    assert limit.said(text) == wanted


def test_a_kernel_that_does_not_say_takes_the_least(tmp_path, monkeypatch):
    monkeypatch.setattr(limit, "_MODULE", str(tmp_path / "none"))
    monkeypatch.setattr(limit, "_KERNEL", str(tmp_path / "none.gz"))
    assert limit.branch_limit() == 127
    import gzip

    (tmp_path / "none.gz").write_bytes(gzip.compress(b"CONFIG_AUFS_BRANCH_MAX_511=y\n"))
    assert limit.branch_limit() == 511
    (tmp_path / "none").write_text("CONFIG_AUFS_BRANCH_MAX_1023=y\n")
    assert limit.branch_limit() == 1023


# ---------------------------------------------------------------- probe


class NoAufs(EngineHost):
    """A kernel without it."""

    def __init__(self, error):
        super().__init__()
        self._error = error

    @contextlib.contextmanager
    def mounted(self, plan):
        raise self._error
        yield


def refusal(root, host):
    before = sorted(os.listdir(root))
    report = probe(str(root), {}, host)
    assert sorted(os.listdir(root)) == before
    assert report.verdict is api.Verdict.UNUSABLE
    assert report.capabilities is None
    (reason,) = report.reasons
    assert reason.text
    assert reason.remedy
    return reason


@needs_root
def test_a_kernel_without_aufs(tmp_path):
    reason = refusal(tmp_path, NoAufs(OSError(19, "No such device")))
    assert reason.code == "aufs.no-kernel"
    assert "aufs-standalone" in reason.remedy


@needs_root
def test_who_may_not_mount(tmp_path):
    assert refusal(tmp_path, NoAufs(PermissionError(1, "Operation not permitted"))).code == "aufs.not-permitted"


@needs_root
def test_a_place_that_aufs_does_not_take(tmp_path):
    assert refusal(tmp_path, NoAufs(OSError(22, "Invalid argument"))).code == "aufs.no-mount"


@needs_root
@pytest.mark.parametrize("name", ["overlay", "aufs", "ecryptfs", "nfs", "fuse"])
def test_what_branches_are_not_to_lie_on(tmp_path, monkeypatch, name):
    monkeypatch.setattr("cowshed_driver_aufs.probe.file_system_name", lambda _: name)
    reason = refusal(tmp_path, EngineHost())
    assert reason.code == "aufs.backing"
    assert name in reason.text
    assert "ext4" in reason.remedy


@needs_root
def test_a_user_namespace_is_refused(tmp_path, monkeypatch):
    real = os.read

    def read(fd, size):
        found = real(fd, size)
        return b"0 100000 65536\n" if b"4294967295" in found else found

    monkeypatch.setattr("cowshed_driver_aufs.probe.os.read", read)
    assert refusal(tmp_path, EngineHost()).code == "aufs.user-namespace"


@needs_root
def test_a_place_without_user_attributes(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("cowshed_driver_aufs.probe.os.setxattr", refuse)
    assert refusal(tmp_path, EngineHost()).code == "aufs.no-xattr"
