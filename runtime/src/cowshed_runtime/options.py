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
_SILENT = ("defaults", "async", "loud", "silent", "nomand", "nolazytime", "noiversion")
# Known words that this runtime cannot keep: an error rather than a mount that is not what was asked for.
UNSUPPORTED = ("idmap", "ridmap", "remount", "iversion", "mand")


class Options:
    """add, clear: attributes of the mount itself; add_below, clear_below: of it and all mounts below it (`rro`);
    propagation: MS_ flag or 0; data: what is the file system's own; copy_up: fill a tmpfs with what it hides."""

    def __init__(self, options: list[str]) -> None:
        self.add = self.clear = self.add_below = self.clear_below = 0
        self.propagation, self.propagation_below = 0, False
        self.bind = "bind" in options or "rbind" in options
        self.recursive = "rbind" in options
        self.copy_up = False
        self.data: list[tuple[str, str | int | None]] = []
        for option in options:
            below = option[1:] if option[:1] == "r" else ""
            if option in _ATTRIBUTES:
                add, clear = _ATTRIBUTES[option]
                self.add, self.clear = self.add & ~clear | add, self.clear & ~add | clear
            elif below in _ATTRIBUTES:
                add, clear = _ATTRIBUTES[below]
                self.add_below, self.clear_below = self.add_below & ~clear | add, self.clear_below & ~add | clear
            elif option in PROPAGATION:
                self.propagation, self.propagation_below = PROPAGATION[option], False
            elif below in PROPAGATION:
                self.propagation, self.propagation_below = PROPAGATION[below], True
            elif option == "tmpcopyup":
                self.copy_up = True
            elif option not in _SILENT and option not in ("bind", "rbind"):
                key, equals, value = option.partition("=")
                self.data.append((key, value if equals else None))
