"""The steps of a plan that mount: bind mounts, file systems, control groups.

A target is found and then mounted onto by the very same descriptor (move_mount(2)), so that no swap of a name in
between leads elsewhere (CVE-2021-30465, CVE-2024-45310).
"""

from __future__ import annotations

import os
import stat

from cowshed_linux import mount, procfs
from cowshed_linux.paths import open_in_root
from cowshed_runtime import mappings
from cowshed_runtime.copyup import copy_tree
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.options import Options
from cowshed_runtime.targets import place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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


_PLAIN = mount.ATTR_RDONLY | mount.ATTR_NOSUID | mount.ATTR_NODEV | mount.ATTR_NOEXEC | mount.ATTR_NOSYMFOLLOW
_GROUPS = "/sys/fs/cgroup"
_WITHOUT_DEVICE = frozenset(("tmpfs", "proc", "sysfs", "devpts", "mqueue"))
# What a user namespace may not mount, because not all that it shows is the namespace's own, is bound from the host.
_BOUND_INSTEAD = {"proc": "/proc", "sysfs": "/sys", "mqueue": "/dev/mqueue"}


class Mapping:
    """Identities for a mount: of a user namespace that is made for it, or that of path."""

    def __init__(self, users: mappings.Extents, groups: mappings.Extents, path: str = "") -> None:
        self.users, self.groups, self.path = users, groups, path

    def open(self) -> int:
        """The descriptor of the user namespace."""
        if self.path:
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return mappings.namespace(self.users, self.groups)


def joined(bundle: str, path: str) -> str:
    """A path of the configuration: relative ones are relative to the bundle."""
    return path if path[:1] == "/" or not bundle else f"{bundle}/{path}"


def _finish(tree: int, options: Options) -> None:
    if options.add_below or options.clear_below:
        mount.set_attributes(tree, options.add_below, clear=options.clear_below, recursive=True)


def _propagate(tree: int, wanted: list[tuple[int, bool]]) -> None:
    for kind, below in wanted:
        mount.set_attributes(tree, propagation=kind, recursive=below)


class _Mount:
    stage = "mount"
    late_read_only = False
    opened = False  # by OpenSources

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
        link = self.options.destination_link
        try:
            target = place(scene.root, destination, directory=directory, plain=plain, link=link)
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

    opened = True

    def __init__(self, source: str, destination: str, options: Options, mapping: Mapping | None = None) -> None:
        super().__init__(source, destination, options)
        self.mapping = mapping

    def describe(self) -> str:
        shifted = " with its identities shifted" if self.options.idmap else ""
        return f"bind {self.source} at {self.destination}{shifted}"

    def open(self) -> int:
        """A detached copy of the mount at the source, with its identities shifted if that is asked for."""
        options = self.options
        flags = mount.OPEN_TREE_CLONE | (mount.AT_RECURSIVE if options.recursive else 0)
        tree = mount.open_tree(self.source, flags | (mount.AT_SYMLINK_NOFOLLOW if options.source_link else 0))
        if options.idmap and self.mapping:
            try:
                namespace = self.mapping.open()
                try:
                    mount.set_attributes(tree, mount.ATTR_IDMAP, userns=namespace, recursive=options.idmap_below)
                finally:
                    os.close(namespace)
            except BaseException:
                os.close(tree)
                raise
        return tree

    def perform(self, scene: Scene) -> None:
        if self.options.copy_symlink and self not in scene.trees:
            self._copy_symlink(scene)
            return
        tree, options = scene.trees.pop(self), self.options
        try:
            if options.add or options.clear:
                mount.set_attributes(tree, options.add, clear=options.clear)
            _finish(tree, options)
            # A peer of the host's mount would let the container mount things there: it is a slave first, always.
            shared = any(kind == mount.SHARED for kind, _ in options.propagation)
            first = mount.SLAVE if options.propagation and (scene.isolated_users or not shared) else mount.PRIVATE
            if not shared or scene.isolated_users:
                mount.set_attributes(tree, propagation=first, recursive=True)
            _propagate(tree, options.propagation)
            self.attach(scene, tree, self.destination, directory=stat.S_ISDIR(os.fstat(tree).st_mode))
        finally:
            os.close(tree)

    def _copy_symlink(self, scene: Scene) -> None:
        """The source is a symbolic link that is made again in the container (`copy-symlink`)."""
        above, _, name = self.destination.rpartition("/")
        text = os.readlink(self.source)
        folder = place(scene.root, above or "/", directory=True)
        try:
            os.symlink(text, name, dir_fd=folder)
        except FileExistsError:
            there = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISLNK(there.st_mode) or os.readlink(name, dir_fd=folder) != text:
                raise
        finally:
            os.close(folder)


class FileSystem(_Mount):
    """A new file system: proc, sysfs, tmpfs, devpts, mqueue, or one on a device."""

    def __init__(self, kind: str, source: str, destination: str, options: Options) -> None:
        super().__init__(source, destination, options)
        self.kind = kind
        # Mount points in it and devices may have to be made first.
        self.late_read_only = kind == "tmpfs" and bool(options.add & mount.ATTR_RDONLY)
        # Devices are opened on the host, before the container's device rules and user namespace forbid that.
        self.opened = source[:1] == "/" and kind not in _WITHOUT_DEVICE

    def describe(self) -> str:
        return f"mount a {self.kind} at {self.destination}"

    def perform(self, scene: Scene) -> None:
        options = self.options
        tree = scene.trees.pop(self) if self.opened else self.open()
        try:
            _finish(tree, options)
            if options.copy_up:
                self._copy_up(scene, tree)
            # Masks and settings are found by these names later: they must be where they seem (CVE-2019-19921).
            kernel = self.kind in ("proc", "sysfs")
            if self.destination == "/proc" and self.kind != "proc":
                raise LaunchError("mount", 1, f"{self.describe()}: /proc is the kernel's")
            _propagate(tree, options.propagation)
            self.attach(scene, tree, self.destination, plain=kernel)
            if options.version:
                self._count_versions(tree)
            if self.late_read_only:
                scene.sealed.append(os.dup(tree))
        finally:
            os.close(tree)

    def open(self) -> int:
        """A detached mount."""
        options = self.options
        add = options.add & ~mount.ATTR_RDONLY if self.late_read_only else options.add
        flags = list(options.flags)
        if add & mount.ATTR_RDONLY and self.source[:1] == "/":
            flags.append("ro")  # a device that must not be written at all
        try:
            return mount.file_system(self.kind, self.source, [*((name, None) for name in flags), *options.data], add)
        except PermissionError:
            if self.kind not in _BOUND_INSTEAD:
                raise
            return self._bind_instead(add)

    def _bind_instead(self, add: int) -> int:
        """The host's, if the kernel does not give this user namespace one of its own: it would show more than what is
        the namespace's. Of sysfs nothing may be written, control groups least of all (CVE-2023-25809)."""
        tree = mount.clone(_BOUND_INSTEAD[self.kind], recursive=True)
        try:
            mount.set_attributes(tree, propagation=mount.PRIVATE, recursive=True)
            if self.kind == "sysfs":
                mount.set_attributes(tree, add | mount.ATTR_RDONLY, recursive=True)
            elif add:
                mount.set_attributes(tree, add)
        except BaseException:
            os.close(tree)
            raise
        return tree

    def _count_versions(self, tree: int) -> None:
        """`iversion` is a flag of mount(2) only, and only of what is attached. That sets the mount's own attributes
        anew, too."""
        mount.mount(None, f"/proc/self/fd/{tree}", None, mount.REMOUNT | mount.I_VERSION)
        mount.set_attributes(tree, self.options.add, clear=self.options.clear & mount.ATTR_ATIME)

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
                self._bind(scene, layout.v2 + self.group.path, self.destination)
            else:
                self._show(scene)
            return
        flags = mount.ATTR_NOSUID | mount.ATTR_NODEV | mount.ATTR_NOEXEC
        base = mount.file_system("tmpfs", "cgroup", [("mode", "755"), ("size", "64k")], flags)
        try:
            hierarchies = [(path, os.path.basename(path), names) for path, names in layout.v1]
            if layout.v2:
                hierarchies.append((layout.v2, "unified", ()))
            for _, folder, names in hierarchies:
                os.mkdir(folder, 0o755, dir_fd=base)
                for controller in names if len(names) > 1 else ():
                    os.symlink(folder, controller, dir_fd=base)
            if options.add & mount.ATTR_RDONLY:
                mount.set_attributes(base, mount.ATTR_RDONLY)
            self.attach(scene, base, self.destination)
            for path, folder, _ in hierarchies:
                self._bind(scene, path + self.group.path, f"{self.destination}/{folder}")
        finally:
            os.close(base)

    def _show(self, scene: Scene) -> None:
        """The container has no groups of its own: it may see the host's, and not make any (CVE-2023-25809)."""
        if not os.path.isdir(_GROUPS):
            return
        tree = mount.clone(_GROUPS, recursive=True)
        try:
            mount.set_attributes(tree, propagation=mount.PRIVATE, recursive=True)
            mount.set_attributes(tree, self.options.add | mount.ATTR_RDONLY, recursive=True)
            self.attach(scene, tree, self.destination)
        finally:
            os.close(tree)

    def _bind(self, scene: Scene, group: str, destination: str) -> None:
        tree = mount.clone(group)
        try:
            mount.set_attributes(tree, self.options.add, propagation=mount.PRIVATE)
            self.attach(scene, tree, destination)
        finally:
            os.close(tree)


class Remount(_Mount):
    """Other options for what is mounted at a place of the container already (mount(8), remount)."""

    def describe(self) -> str:
        return f"change the options of what is mounted at {self.destination}"

    def perform(self, scene: Scene) -> None:
        options = self.options
        target = open_in_root(scene.root, self.destination, os.O_PATH)
        try:
            if not options.bind and (options.data or options.flags or options.cleared):
                with mount.Context.of(target) as context:
                    for name in (*options.cleared, *options.flags):
                        context.set(name)
                    for key, value in options.data:
                        context.set(key, value)
                    context.reconfigure()
            # What is not asked for is not so afterwards; access times stay as they are, as mount(8) leaves them.
            kept = options.clear | _PLAIN & ~options.add
            mount.set_attributes(target, options.add, clear=kept)
            _finish(target, options)
            _propagate(target, options.propagation)
        finally:
            os.close(target)


class OpenSources:
    """Open what is bound, and devices, while the host's names and its propagation are still there."""

    stage = "mount"

    def __init__(self, mounts: list[Bind | FileSystem]) -> None:
        self.mounts = mounts

    def describe(self) -> str:
        return f"open the sources of {len(self.mounts)} mounts"

    def execute(self, scene: Scene) -> None:
        for step in self.mounts:
            try:
                if step.options.copy_symlink and os.path.islink(step.source):
                    continue
                scene.trees[step] = step.open()
            except OSError as error:
                raise LaunchError("mount", error.errno or 0, f"{step.describe()}: {_text(error)}") from None


# By the policy, file by file: one label for all would hide what they are.
_OWN_LABELS = ("proc", "sysfs", "mqueue")


def mounts(
    entries: list[dict[str, Any]], group: Group, bundle: str = "", mapping: Mapping | None = None, label: str = ""
) -> list[_Mount]:
    """The steps for OCI `mounts`. Pure. group: the container's; bundle: what relative sources are relative to; mapping:
    the container's identities; label: of SELinux, for file systems that are made."""
    steps: list[_Mount] = []
    for entry in entries:
        options = Options(entry.get("options") or [])
        kind = str(entry.get("type") or "")
        # One spelling of each name: `//proc/.` is judged as /proc. Parts `..` have been refused.
        destination = "/" + "/".join([part for part in str(entry["destination"]).split("/") if part not in ("", ".")])
        source = str(entry.get("source") or kind or "none")
        if options.remount:
            steps.append(Remount(source, destination, options))
        elif options.bind or kind in ("bind", ""):
            own = mapping
            if entry.get("uidMappings"):
                options.idmap = True  # which older configurations leave out
                own = Mapping(mappings.extents(entry["uidMappings"]), mappings.extents(entry["gidMappings"]))
            steps.append(Bind(joined(bundle, source), destination, options, own))
        elif kind in ("cgroup", "cgroup2"):
            steps.append(Cgroup(group, destination, options))
        else:
            if label and kind not in _OWN_LABELS and not any(key == "context" for key, _ in options.data):
                options.data.append(("context", label))
            steps.append(FileSystem(kind, source, destination, options))
    return steps
