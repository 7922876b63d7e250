"""Mount options of the runtime specification (config.md, Mounts; mount(8)), sorted by what is done with them. Pure."""

from __future__ import annotations

from cowshed_linux import mount

_ATTRIBUTES = {
    "ro": (mount.ATTR_RDONLY, 0), "rw": (0, mount.ATTR_RDONLY),
    "nosuid": (mount.ATTR_NOSUID, 0), "suid": (0, mount.ATTR_NOSUID),
    "nodev": (mount.ATTR_NODEV, 0), "dev": (0, mount.ATTR_NODEV),
    "noexec": (mount.ATTR_NOEXEC, 0), "exec": (0, mount.ATTR_NOEXEC),
    "noatime": (mount.ATTR_NOATIME, mount.ATTR_ATIME), "relatime": (0, mount.ATTR_ATIME),
    "atime": (0, mount.ATTR_ATIME), "norelatime": (0, mount.ATTR_ATIME),
    "strictatime": (mount.ATTR_STRICTATIME, mount.ATTR_ATIME), "nostrictatime": (0, mount.ATTR_ATIME),
    "nodiratime": (mount.ATTR_NODIRATIME, 0), "diratime": (0, mount.ATTR_NODIRATIME),
    "nosymfollow": (mount.ATTR_NOSYMFOLLOW, 0), "symfollow": (0, mount.ATTR_NOSYMFOLLOW),
}  # fmt: skip
PROPAGATION = {
    "private": mount.PRIVATE, "slave": mount.SLAVE, "shared": mount.SHARED, "unbindable": mount.UNBINDABLE,
}  # fmt: skip
# Of a file system and not of one mount of it: (the name by which fsconfig(2) knows it, the one that takes it back).
# A bind mount is of a file system that has its own already.
_OF_FILE_SYSTEM = {
    "sync": ("sync", "async"), "async": ("async", "sync"), "dirsync": ("dirsync", ""),
    "lazytime": ("lazytime", "nolazytime"), "nolazytime": ("nolazytime", "lazytime"),
    "mand": ("mand", "nomand"), "nomand": ("nomand", "mand"),
}  # fmt: skip
# loud and silent are about messages of the kernel's log, which fsconfig(2) gives to the caller instead.
_SILENT = ("defaults", "loud", "silent")
_WORDS = {
    "tmpcopyup": "copy_up", "copy-symlink": "copy_symlink", "src-nofollow": "source_link",
    "dest-nofollow": "destination_link", "remount": "remount", "bind": "bind", "rbind": "bind",
}  # fmt: skip


class Options:
    """add, clear: attributes of the mount itself; add_below, clear_below: of it and all mounts below it (`rro`);
    propagation: MS_ flags with whether they go for the mounts below too, in the order given; data: what is the file
    system's own; version: count changes of its files (`iversion`); copy_up: fill a tmpfs with what it hides;
    source_link, destination_link: the last part is not followed if it is a symbolic link; copy_symlink: a source that
    is one is made again; idmap: shift identities, with below also those of the mounts below."""

    def __init__(self, options: list[str]) -> None:
        self.add = self.clear = self.add_below = self.clear_below = 0
        self.propagation: list[tuple[int, bool]] = []
        self.bind = self.copy_up = self.copy_symlink = self.source_link = self.destination_link = self.remount = False
        self.recursive = "rbind" in options
        self.version = self.idmap = self.idmap_below = False
        self.data: list[tuple[str, str | int | None]] = []
        flags: dict[str, None] = {}
        for option in options:
            below = option[1:] if option[:1] == "r" else ""
            if option in _ATTRIBUTES:
                add, clear = _ATTRIBUTES[option]
                self.add, self.clear = self.add & ~clear | add, self.clear & ~add | clear
            elif below in _ATTRIBUTES:
                add, clear = _ATTRIBUTES[below]
                self.add_below, self.clear_below = self.add_below & ~clear | add, self.clear_below & ~add | clear
            elif option in PROPAGATION:
                self.propagation.append((PROPAGATION[option], False))
            elif below in PROPAGATION:
                self.propagation.append((PROPAGATION[below], True))
            elif option in _OF_FILE_SYSTEM:
                name, opposite = _OF_FILE_SYSTEM[option]
                flags.pop(opposite, None)
                flags[name] = None
            elif option in ("iversion", "noiversion"):
                self.version = option == "iversion"
            elif option in ("idmap", "ridmap"):
                self.idmap, self.idmap_below = True, option == "ridmap"
            elif option in _WORDS:
                setattr(self, _WORDS[option], True)
            elif option not in _SILENT:
                key, equals, value = option.partition("=")
                self.data.append((key, value if equals else None))
        # What is so anyway is not said: not every file system would understand it.
        self.flags = [name for name in flags if name[:2] != "no" and name != "async"]
        self.cleared = [name for name in flags if name not in self.flags]
