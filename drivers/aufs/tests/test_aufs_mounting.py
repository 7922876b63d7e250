"""How aufs is mounted, on a fake of its system calls: no kernel of a distribution has it.

The fake does to a call what the real one was seen to do: 84 slots, one more by `br` crashes, one more by `append` is
E2BIG; a permission that it does not know becomes `ro` without a word.
"""

import errno
import os
import stat
import sys

import pytest

from cowshed.layers import aufs
from cowshed.storage import api
from cowshed_driver_aufs.branches import OPTIONS

SLOTS = 84
NUMBER = "0123456789abcdef"


class Crash(BaseException):
    """The kernel is gone."""


class Kernel:
    """aufs, as far as mounting asks it. forget: a branch that it loses; spoil: one that it makes plain `ro`."""

    def __init__(self, folder, *, limit=127, forget=-1, spoil=-1):
        self.limit, self.forget, self.spoil = limit, forget, spoil
        self.sysfs = folder / "sysfs"
        (self.sysfs / f"si_{NUMBER}").mkdir(parents=True)
        self.trees, self.calls, self.branches, self.options = [], [], [], {}
        self._waiting = []

    def context(self, fstype):
        assert fstype == "aufs"
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_): ...

    def file_system(self, fstype, source, options=(), attributes=0):
        assert fstype == "tmpfs"
        return self.opened()

    def opened(self):
        self.trees.append(os.open("/", os.O_PATH | os.O_CLOEXEC))
        return self.trees[-1]

    def set(self, name, value=None):
        self.options[name] = value
        if name in ("source", "ro"):
            return  # not its own: the kernel takes them before
        self._waiting.append(name)
        if len(self._waiting) > SLOTS:
            raise Crash if name == "br" else OSError(errno.E2BIG, name)
        if name in ("br", "append"):
            place, _, permission = value.rpartition("=")
            path = os.readlink(place)
            assert len(value) <= 255
            n = len(self.branches)
            self.branches.append((path, "ro" if n == self.spoil else permission))

    def create(self):
        self._apply()

    reconfigure = create

    def _apply(self):
        self.calls.append(self._waiting)
        self._waiting = []
        if len(self.branches) > self.limit:
            raise OSError(errno.ENOSPC, "No space left on device")
        path, permission = self.branches[0]
        if permission == "rw":
            os.makedirs(f"{path}/.wh..wh.plnk", exist_ok=True)

    def shown(self, tree):
        assert is_open(tree)
        return [b for n, b in enumerate(self.branches) if n != self.forget]

    def numbered(self, tree):
        assert is_open(tree)
        return self.opened(), NUMBER

    def mount(self, attributes=0):
        self.options["attributes"] = attributes
        return self.opened()


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    def install(**faults):
        made = Kernel(tmp_path, **faults)
        monkeypatch.setattr(aufs, "_SYSFS", str(made.sysfs))
        monkeypatch.setattr(aufs, "branches", made.shown)
        monkeypatch.setattr(aufs, "_numbered", made.numbered)
        monkeypatch.setattr(aufs.mount, "Context", made.context)
        monkeypatch.setattr(aufs.mount, "file_system", made.file_system)
        return made

    return install


def branches(tmp_path, count):
    odd = ["a,b", "c:d", "e=rw", "f g", "h\ni", "j\\k", "ä", "x" * 200]
    paths = []
    for n in range(count):
        path = tmp_path / f"{n}{odd[n % len(odd)]}"
        path.mkdir()
        paths.append(str(path))
    return tuple(paths)


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("count", [1, 2, 5, 55, 56, 57, 116, 117, 127])
@pytest.mark.parametrize("writable", [True, False])
def test_branches_come_in_batches_and_one_by_br(tmp_path, kernel, count, writable):
    fake = kernel()
    paths = branches(tmp_path, count)
    fd = aufs.mounted(api.Aufs(paths, writable, OPTIONS))
    assert is_open(fd)
    os.close(fd)
    assert all(len(call) <= 60 for call in fake.calls), [len(call) for call in fake.calls]
    assert [name for call in fake.calls for name in call].count("br") == 1
    top = "rw" if writable else "ro+wh"
    assert fake.branches == [(path, top if n == 0 else "ro+wh") for n, path in enumerate(paths)]
    assert not any(map(is_open, fake.trees)), "a descriptor stays open"


def test_a_view_is_read_only_in_both_ways(tmp_path, kernel):
    fake = kernel()
    os.close(aufs.mounted(api.Aufs(branches(tmp_path, 3), False, OPTIONS)))
    assert "ro" in fake.options
    assert fake.options["attributes"] == aufs.mount.ATTR_RDONLY


def test_each_mount_has_a_name_for_its_numbers(tmp_path, kernel):
    fake, seen = kernel(), set()
    for _ in range(3):
        fake.branches.clear()
        os.close(aufs.mounted(api.Aufs(branches(tmp_path / os.urandom(4).hex(), 0) or (str(tmp_path),), True, OPTIONS)))
        seen.add(fake.options["xino"].rpartition("/")[2])
    assert len(seen) == 3


@pytest.mark.parametrize("fault", [{"forget": 0}, {"forget": 1}, {"forget": 99}, {"spoil": 1}, {"spoil": 100}])
def test_what_the_kernel_made_otherwise_is_not_used(tmp_path, kernel, fault):
    fake = kernel(**fault)
    with pytest.raises(OSError, match="branch") as raised:
        aufs.mounted(api.Aufs(branches(tmp_path, 120), True, OPTIONS))
    assert raised.value.errno == errno.EIO
    assert not any(map(is_open, fake.trees))


def test_a_mount_that_cannot_be_noted_is_not_used(tmp_path, kernel):
    fake = kernel()
    (fake.sysfs / f"si_{NUMBER}").rmdir()
    with pytest.raises(FileNotFoundError):
        aufs.mounted(api.Aufs(branches(tmp_path, 2), True, OPTIONS))
    assert not any(map(is_open, fake.trees))


def test_more_branches_than_it_takes(tmp_path, kernel):
    fake = kernel(limit=61)
    with pytest.raises(OSError, match="62 branches") as raised:
        aufs.mounted(api.Aufs(branches(tmp_path, 62), True, OPTIONS))
    assert raised.value.errno == errno.ENOSPC
    assert not any(map(is_open, fake.trees))


def test_a_branch_that_is_missing(tmp_path, kernel):
    fake = kernel()
    with pytest.raises(FileNotFoundError):
        aufs.mounted(api.Aufs((*branches(tmp_path, 70), str(tmp_path / "none")), True, OPTIONS))
    assert not any(map(is_open, fake.trees))


# Permission and path, as AUFS_CTL_BRINFO of aufs 6.1-20240701 gives them
RECORDED = {
    (1, b"/srv/store/active/0af3/branch"): ("/srv/store/active/0af3/branch", "rw"),
    (0x1002, b"/srv/a=b:c,d/branch"): ("/srv/a=b:c,d/branch", "ro+wh"),
    (2, b"/srv/with\\040space\\012line\\134back"): ("/srv/with space\nline\\back", "0x2"),
    (1, "/srv/ä".encode() + b"\xff"): ("/srv/ä\udcff", "rw"),
}


@pytest.mark.parametrize("said", RECORDED)
def test_what_aufs_says_of_a_branch_is_understood(said):
    permission, path = said
    entry = (7).to_bytes(4, sys.byteorder) + permission.to_bytes(4, sys.byteorder) + path + b"\0rest of an older one"
    assert aufs.parse(entry.ljust(4096, b"\0")) == RECORDED[said]


TABLE = b"""22 1 254:0 / / rw - ext4 /dev/root rw
30 22 0:20 / /proc rw - proc proc rw
41 22 0:40 / /mnt rw - aufs /srv/mine rw,si=1111111111111111,acl
42 30 0:41 / /proc rw - aufs /srv/with\\040si=2 rw,si=e2c5d9b1ab3f7c42,acl,dirperm1
"""


def test_which_mount_it_is_stands_in_the_mount_table():
    assert aufs.number_in(TABLE) == "e2c5d9b1ab3f7c42"
    with pytest.raises(OSError, match="does not show which"):
        aufs.number_in(TABLE.replace(b"/proc rw - aufs", b"/other rw - aufs"))


def test_a_branch_in_use_is_found_and_no_file_of_sysfs_is_read(tmp_path, kernel):
    """Reading one while a mount is made, or goes, crashes the kernel."""
    fake = kernel()
    unreadable = fake.sysfs / f"si_{NUMBER}" / "br0"
    os.mkfifo(unreadable)  # whoever opens it waits for ever
    paths = branches(tmp_path, 3)
    assert aufs.in_use(paths[0]) is False
    os.close(aufs.mounted(api.Aufs(paths, True, OPTIONS)))
    assert aufs.in_use(paths[0]) is True
    assert aufs.in_use(paths[1]) is False
    unreadable.unlink()
    (fake.sysfs / f"si_{NUMBER}").rename(tmp_path / "gone")
    assert aufs.in_use(paths[0]) is False
    (fake.sysfs / f"si_{NUMBER}").mkdir()  # the number of another mount by now
    assert aufs.in_use(paths[0]) is False


# ---------------------------------------------------------------- pseudo-links


@pytest.fixture
def mounted(tmp_path, kernel, monkeypatch):
    """A tree that stands for a mount, in which one file has three names and was changed through one of them."""
    kernel()
    branch, tree = tmp_path / "branch", tmp_path / "tree"
    for path in (branch, branch / ".wh..wh.plnk", tree, tree / "d", tree / "d/deep"):
        path.mkdir()
    (tree / "g").write_text("new")
    os.chmod(tree / "g", 0o4755)
    os.utime(tree / "g", ns=(1_000_000_001, 2_000_000_003))
    for name in ("g2", "d/deep/g3"):
        os.link(tree / "g", tree / name)
    (tree / "other").write_text("other")
    os.link(tree / "other", tree / "d/other2")
    step = api.Aufs((str(branch),), True, OPTIONS)
    os.close(aufs.mounted(step))
    maintenance = tmp_path / "plink_maint"
    maintenance.write_text("")
    monkeypatch.setattr(aufs, "_MAINTENANCE", str(maintenance))
    fd = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    yield fd, step, tree, branch, maintenance
    os.close(fd)


def test_every_name_of_a_pseudo_link_is_touched_and_nothing_else(mounted, monkeypatch):
    fd, step, tree, branch, maintenance = mounted
    number = os.stat(tree / "g").st_ino
    os.link(tree / "g", branch / f".wh..wh.plnk/{number}.77")
    touched, real = [], os.chmod

    def chmod(name, mode, **more):
        assert maintenance.read_text() == "si=0123456789abcdef", "aufs does not know yet"
        touched.append(name)
        real(name, mode, **more)

    monkeypatch.setattr(os, "chmod", chmod)
    before = os.stat(tree / "g")
    assert aufs.settle(fd, step.branches[0]) == 1
    assert sorted(touched) == ["g", "g2", "g3"]
    after = os.stat(tree / "g")
    assert stat.S_IMODE(after.st_mode) == 0o4755, "a set-user-id bit was lost"
    assert (after.st_atime_ns, after.st_mtime_ns) == (before.st_atime_ns, before.st_mtime_ns)
    assert os.listdir(branch / ".wh..wh.plnk") == []
    assert maintenance.read_text() == "si=0123456789abcdefclean"


def test_without_pseudo_links_nothing_is_asked_of_the_kernel(mounted):
    fd, step, _, branch, maintenance = mounted
    maintenance.unlink()
    assert aufs.settle(fd, step.branches[0]) == 0
    (branch / ".wh..wh.plnk").rmdir()
    assert aufs.settle(fd, step.branches[0]) == 0


def test_a_mount_ends_even_if_its_links_cannot_be_kept(mounted, monkeypatch):
    from cowshed.layers.mounting import release

    _, step, tree, branch, maintenance = mounted
    os.link(tree / "g", branch / ".wh..wh.plnk/1.2")
    maintenance.unlink()
    fd = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    with pytest.raises(FileNotFoundError):
        release(fd, api.MountPlan((step,)))
    assert not is_open(fd)
