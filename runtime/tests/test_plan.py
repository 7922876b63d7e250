"""Plans: what they say, and the order in which they are executed. What would take rights is recorded instead."""

import copy
import os
import stat

import pytest

from cowshed_linux import mount, procfs
from cowshed_runtime import defaults, plan, rootfs
from cowshed_runtime.cgroup.group import Group
from cowshed_runtime.cgroup.layout import Layout


class Recorder:
    """Stands in for what changes mounts and roots: the functions of cowshed_linux.mount are the one way of the steps to
    the kernel there. Each call is a line; descriptors are real ones, of an empty directory or of what was cloned."""

    def __init__(self, monkeypatch, folder) -> None:
        self.lines: list[str] = []
        self.names: dict[int, str] = {}
        self.empty = folder / "empty"
        self.empty.mkdir()
        (self.empty / "pts").mkdir()
        for name in ("mount", "unmount", "pivot_root", "attach", "set_attributes", "file_system", "open_tree"):
            monkeypatch.setattr(mount, name, getattr(self, name))
        monkeypatch.setattr(os, "chroot", lambda path: self.lines.append(f"chroot {path}"))
        monkeypatch.setattr(os, "fchdir", lambda fd: self.lines.append(f"enter {self.names.get(fd, fd)}"))
        monkeypatch.setattr(os, "chdir", lambda path: self.lines.append(f"enter {path}"))
        monkeypatch.setattr(os, "mknod", self.node)
        self._dup = os.dup
        monkeypatch.setattr(os, "dup", self.dup)
        monkeypatch.setattr(rootfs, "is_null", lambda _: True)
        monkeypatch.setattr(procfs, "in_it", lambda _: False)

    def _made(self, path, name: str) -> int:
        fd = os.open(path, os.O_RDONLY)
        self.names[fd] = name
        return fd

    def dup(self, fd) -> int:
        made = self._dup(fd)
        self.names[made] = self.names.get(fd, "a place")
        return made

    def mount(self, source, target, fstype, flags=0, data=None) -> None:
        self.lines.append(f"mount {target} {flags:#x}")

    def unmount(self, target, flags=0) -> None:
        self.lines.append(f"unmount {target}")

    def pivot_root(self, new, old) -> None:
        self.lines.append(f"pivot {new} {old}")

    def file_system(self, kind, source, options=(), attributes=0) -> int:
        self.lines.append(f"new {kind}")
        return self._made(self.empty, kind)

    def open_tree(self, path, flags=0, *, at=-100) -> int:
        self.lines.append(f"clone {path or 'what is there'}")
        if path:
            return self._made(path, str(path))
        return self._made(f"/proc/self/fd/{at}", "a copy")

    def attach(self, tree, path="", *, at=-100) -> None:
        place = path or os.readlink(f"/proc/self/fd/{at}").rpartition("rootfs")[2] or "/"
        self.lines.append(f"attach {self.names.get(tree, tree)} at {place}")

    def set_attributes(self, tree, add=0, *, clear=0, propagation=0, userns=0, recursive=False) -> None:
        what = f"propagation {propagation:#x}" if propagation else f"attributes {add:#x}"
        self.lines.append(f"{what} of {self.names.get(tree, tree)}")

    def node(self, name, mode, number, *, dir_fd) -> None:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=dir_fd))
        self.lines.append(f"node {name} {stat.S_IMODE(mode):o} {os.major(number)}:{os.minor(number)}")


@pytest.fixture
def config(tmp_path):
    made = defaults.config()
    made["process"]["args"] = ["true"]
    (tmp_path / "file").write_text("")
    made["mounts"] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]},
        {"destination": "/etc/file", "source": "file", "options": ["bind", "ro"]},
    ]
    made["linux"].update(maskedPaths=["/proc/keys"], readonlyPaths=["/proc/sys"])
    made["root"]["readonly"] = True
    return made


def build(config, folder, **more):
    return plan.build(config, Group("name", within=Layout("")), bundle=str(folder), own_root=True, **more)


def executed(config, folder, monkeypatch, **more) -> list[str]:
    for name in ("proc/sys", "dev", "etc"):
        (folder / "rootfs" / name).mkdir(parents=True)
    (folder / "rootfs/proc/keys").write_text("")
    made, recorder, scene = build(config, folder, **more), Recorder(monkeypatch, folder), plan.Scene(-1)
    try:
        for step in (*made.sources, *made.steps):
            step.execute(scene)
    finally:
        os.close(scene.root)
        for fd in recorder.names:
            try:
                os.close(fd)
            except OSError:
                continue
    return [line.replace(str(folder), "BUNDLE") for line in recorder.lines]


def at(lines: list[str], start: str) -> int:
    return next(number for number, line in enumerate(lines) if line.startswith(start))


def test_the_order_of_a_plan(config, tmp_path, monkeypatch):
    lines = executed(config, tmp_path, monkeypatch)
    marks = [
        "clone BUNDLE/rootfs", "clone BUNDLE/file",  # with the host's names
        f"mount / {mount.REC | mount.PRIVATE:#x}",  # propagation is cut before anything is mounted
        "attach BUNDLE/rootfs at /", "attach proc at /proc", "attach tmpfs at /dev", "attach BUNDLE/file at /etc/file",
        "node null 666 1:3", "pivot . .", "unmount .", "enter /",
        "attributes 0x1 of tmpfs",  # /dev, when its nodes are made
        "attach a copy at /proc/sys", "attach a copy at /proc/keys",
        "attributes 0x1 of BUNDLE/rootfs",  # the root last
    ]  # fmt: skip
    found = [at(lines, mark) for mark in marks]
    assert found == sorted(found), lines
    assert lines[-1] == marks[-1]


def test_a_mount_is_changed_before_it_can_be_seen(config, tmp_path, monkeypatch):
    lines = executed(config, tmp_path, monkeypatch)
    assert at(lines, "attributes 0x1 of BUNDLE/file") < at(lines, "attach BUNDLE/file")
    assert lines.index(f"propagation {mount.PRIVATE:#x} of BUNDLE/file") < at(lines, "attach BUNDLE/file")


def test_without_a_mount_namespace_nothing_of_the_hosts_is_changed(config, tmp_path, monkeypatch):
    config["linux"]["namespaces"] = [{"type": "pid"}]
    lines = executed(config, tmp_path, monkeypatch)
    assert not [line for line in lines if line.startswith(("mount", "unmount", "pivot")) or line.endswith(" at /")]
    assert at(lines, "attach BUNDLE/file") < at(lines, "chroot .")


def test_without_pivot(config, tmp_path, monkeypatch):
    lines = executed(config, tmp_path, monkeypatch, pivot=False)
    assert at(lines, "attach BUNDLE/rootfs at /") < at(lines, "chroot .")
    assert "pivot . ." not in lines


def test_making_a_plan_changes_nothing(config, tmp_path):
    before = copy.deepcopy(config)
    text = build(config, tmp_path).describe()
    assert config == before
    assert sorted(os.listdir(tmp_path)) == ["file"]
    assert text == build(config, tmp_path).describe()


def test_what_a_plan_says(config, tmp_path):
    linux = config["linux"]
    linux["namespaces"] = [
        {"type": "mount"}, {"type": "user"}, {"type": "time"}, {"type": "network", "path": "/run/netns/blue"},
    ]  # fmt: skip
    for key in ("uidMappings", "gidMappings"):
        linux[key] = [{"containerID": 0, "hostID": 5000, "size": 100}]
    linux["timeOffsets"] = {"boottime": {"secs": 7, "nanosecs": 5}}
    linux["netDevices"] = {"eth0": {"name": "inner"}}
    lines = build(config, tmp_path).describe().splitlines()
    assert lines[:7] == [
        "new namespaces: mount time user",
        "join the network namespace /run/netns/blue",
        "map 100 user ids from 5000 to 0",
        "map 100 group ids from 5000 to 0",
        "set the boottime clock 7.000000005 s ahead",
        "move the network device eth0 in as inner",
        f"open the root {tmp_path}/rootfs",
    ]
    assert lines[-1].startswith("root: read-only")
    for words in ("mount a proc at /proc", "bind", "make devices", "change the root", "hide /proc/keys"):
        assert any(line.startswith(words) for line in lines), words
