"""The steps of a plan that mount: bind mounts, file systems, control groups.

A target is found and then mounted onto by the very same descriptor (move_mount(2)), so that no swap of a name in
between leads elsewhere (CVE-2021-30465, CVE-2024-45310).
"""

from __future__ import annotations

import os
import stat

from cowshed_linux import mount, procfs
from cowshed_linux.paths import open_in_root
from cowshed_runtime.copyup import copy_tree
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.options import Options
from cowshed_runtime.targets import place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed_runtime.cgroup.group import Group
    from cowshed_runtime.plan import Scene

# What may be mounted over below /proc: figures that lxcfs and its like supply. Anything else there could make the
# kernel's files mean something else to those who write to them (CVE-2023-27561, CVE-2025-52881).
PROC_ALLOWED = frozenset(
    f"/proc/{name}" for name in ("cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo",
                                 "net/dev", "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled")
)  # fmt: skip


def _text(error: OSError) -> str:
    return str(error.strerror or error)


def _finish(tree: int, options: Options) -> None:
    if options.add_below or options.clear_below:
        mount.set_attributes(tree, options.add_below, clear=options.clear_below, recursive=True)


class _Mount:
    stage = "mount"

    def __init__(self, source: str, destination: str, options: Options) -> None:
        self.source, self.destination, self.options = source, destination, options

    def describe(self) -> str:
        return f"mount {self.source} at {self.destination}"

    def execute(self, scene: Scene) -> None:
        try:
            self.perform(scene)
        except OSError as error:
            raise LaunchError("mount", error.errno or 0, f"{self.describe()}: {_text(error)}") from None

    def perform(self, scene: Scene) -> None:
        raise AssertionError("of the subclass")

    def attach(self, scene: Scene, tree: int, destination: str, *, directory: bool = True, plain: bool = False) -> None:
        try:
            target = place(scene.root, destination, directory=directory, plain=plain)
        except OSError as error:
            if plain and error.errno == 40:  # ELOOP
                text = f"the image has a symbolic link in the way of {destination}, where the kernel's files must be"
                raise LaunchError("mount", 40, text) from None
            raise
        try:
            self._refuse_in_proc(tree, target)
            mount.attach(tree, at=target)
        finally:
            os.close(target)

    def _refuse_in_proc(self, tree: int, target: int) -> None:
        """Wherever the links of the image have led: by what is there, not by its name."""
        if not procfs.in_it(target) or self.destination in PROC_ALLOWED:
            return
        if procfs.in_it(tree):
            return  # the host's own /proc, for those who share its processes
        raise LaunchError("mount", 1, f"{self.describe()}: nothing may be mounted over the kernel's /proc")


class Bind(_Mount):
    """A bind mount. Its source is opened by OpenSources, in the host's view and before propagation is cut."""

    def describe(self) -> str:
        return f"bind {self.source} at {self.destination}"

    def perform(self, scene: Scene) -> None:
        tree, options = scene.trees.pop(self), self.options
        try:
            if options.add or options.clear:
                mount.set_attributes(tree, options.add, clear=options.clear)
            _finish(tree, options)
            if options.propagation:
                mount.set_attributes(tree, propagation=options.propagation, recursive=options.propagation_below)
            else:
                mount.set_attributes(tree, propagation=mount.PRIVATE, recursive=True)
            self.attach(scene, tree, self.destination, directory=stat.S_ISDIR(os.fstat(tree).st_mode))
        finally:
            os.close(tree)


class FileSystem(_Mount):
    """A new file system: proc, sysfs, tmpfs, devpts, mqueue, or one on a device."""

    def __init__(self, kind: str, source: str, destination: str, options: Options) -> None:
        super().__init__(source, destination, options)
        self.kind = kind

    def describe(self) -> str:
        return f"mount a {self.kind} at {self.destination}"

    def perform(self, scene: Scene) -> None:
        options = self.options
        tree = mount.file_system(self.kind, self.source, options.data, options.add)
        try:
            _finish(tree, options)
            if options.copy_up:
                self._copy_up(scene, tree)
            # Masks and settings are found by these names later: they must be where they seem (CVE-2019-19921).
            kernel = self.kind in ("proc", "sysfs")
            if self.destination == "/proc" and self.kind != "proc":
                raise LaunchError("mount", 1, f"{self.describe()}: /proc is the kernel's")
            self.attach(scene, tree, self.destination, plain=kernel)
            if options.propagation:
                mount.set_attributes(tree, propagation=options.propagation, recursive=options.propagation_below)
        finally:
            os.close(tree)

    def _copy_up(self, scene: Scene, tree: int) -> None:
        try:
            below = open_in_root(scene.root, self.destination, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return
        try:
            into = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
            copy_tree(below, into)
            os.close(into)
        finally:
            os.close(below)


class Cgroup(_Mount):
    """The container's own groups: version 2 the directory itself, version 1 (and hybrid) a small tmpfs with one per
    hierarchy, as on the host. They are bind mounts, so that nothing above them is there, with a cgroup namespace or
    without."""

    def __init__(self, group: Group, destination: str, options: Options) -> None:
        super().__init__("the control groups", destination, options)
        self.group = group

    def perform(self, scene: Scene) -> None:
        layout, options = self.group.layout, self.options
        if not layout.v1:
            if layout.v2:
                self._bind(scene, layout.v2, self.destination)
            return
        flags = mount.ATTR_NOSUID | mount.ATTR_NODEV | mount.ATTR_NOEXEC
        base = mount.file_system("tmpfs", "cgroup", [("mode", "755"), ("size", "64k")], flags)
        try:
            self.attach(scene, base, self.destination)
            hierarchies = [(path, os.path.basename(path), names) for path, names in layout.v1]
            if layout.v2:
                hierarchies.append((layout.v2, "unified", ()))
            for path, folder, names in hierarchies:
                os.mkdir(folder, 0o755, dir_fd=base)
                self._bind(scene, path, f"{self.destination}/{folder}")
                for controller in names if len(names) > 1 else ():
                    os.symlink(folder, controller, dir_fd=base)
            if options.add & mount.ATTR_RDONLY:
                mount.set_attributes(base, mount.ATTR_RDONLY)
        finally:
            os.close(base)

    def _bind(self, scene: Scene, hierarchy: str, destination: str) -> None:
        tree = mount.clone(hierarchy + self.group.path)
        try:
            mount.set_attributes(tree, self.options.add, propagation=mount.PRIVATE)
            self.attach(scene, tree, destination)
        finally:
            os.close(tree)


class OpenSources:
    """Open what is bound while the host's names and its propagation are still there."""

    stage = "mount"

    def __init__(self, binds: list[Bind]) -> None:
        self.binds = binds

    def describe(self) -> str:
        return f"open the sources of {len(self.binds)} bind mounts"

    def execute(self, scene: Scene) -> None:
        for bind in self.binds:
            try:
                scene.trees[bind] = mount.clone(bind.source, recursive=bind.options.recursive)
            except OSError as error:
                raise LaunchError("mount", error.errno or 0, f"{bind.describe()}: {_text(error)}") from None


def mounts(entries: list[dict[str, object]], group: Group) -> list[Bind | FileSystem | Cgroup]:
    """The steps for OCI `mounts`; group: the container's. Pure."""
    steps: list[Bind | FileSystem | Cgroup] = []
    for entry in entries:
        given = entry.get("options") or []
        assert isinstance(given, list)
        options = Options(given)
        kind = str(entry.get("type") or "")
        # One spelling of each name: `//proc/.` is judged as /proc. Parts `..` have been refused.
        destination = "/" + "/".join([part for part in str(entry["destination"]).split("/") if part not in ("", ".")])
        source = str(entry.get("source") or kind or "none")
        if options.bind or kind in ("bind", ""):
            steps.append(Bind(source, destination, options))
        elif kind in ("cgroup", "cgroup2"):
            steps.append(Cgroup(group, destination, options))
        else:
            steps.append(FileSystem(kind, source, destination, options))
    return steps
