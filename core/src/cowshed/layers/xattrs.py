"""Which extended attributes belong to a tree, and which only to the host or to a driver."""

from __future__ import annotations

import os

# Private to overlay, or the host's to say (on btrfs, how a file is compressed; on xfs, an access list as it lies there,
# which system.posix_acl_* tells too): never taken from an image, and never given to one.
REFUSED = (
    "trusted.overlay.", "user.overlay.", "security.selinux", "security.ima", "security.evm", "btrfs.",
    "trusted.SGI_ACL_",
)  # fmt: skip
_UNSUPPORTED, _GONE = 95, 61  # EOPNOTSUPP, ENODATA


def read(target: int | str, *, private: str = "", follow: bool = True) -> dict[str, bytes]:
    """The attributes of a file that go into an archive, by name. private: a driver's own prefix, left out as well."""
    refused = (*REFUSED, private) if private else REFUSED
    found = {}
    for name in sorted(listed(target, follow=follow)):
        if not name.startswith(refused):
            try:
                found[name] = os.getxattr(target, name, follow_symlinks=follow)
            except OSError as error:
                if error.errno != _GONE:
                    raise
    return found


def listed(target: int | str, *, follow: bool = True) -> list[str]:
    """listxattr(2); nothing where the file system has no attributes."""
    try:
        return os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno != _UNSUPPORTED:
            raise
        return []
