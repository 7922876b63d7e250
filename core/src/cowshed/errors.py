"""The engine's own errors. What drivers raise is in `cowshed.storage.errors`.

    CowshedError            exit status 125 unless said otherwise
    ├── BadUsage            the command line is wrong
    ├── ConfigError         a configuration file is wrong
    ├── NotFound            no such container, image, volume, driver
    ├── Unsupported         this version cannot do what was asked for
    ├── Ambiguous           a prefix or short name fits several
    ├── Conflict            the name is taken, or the state forbids it
    ├── Busy                another process holds what is needed, for longer than is waited
    ├── NoSpace             the disk is full
    ├── StoreError          the store cannot be used
    │   └── NewerStore      a newer Cowshed made it
    ├── ImageError          an image breaks its specification
    │   ├── Tampered        bytes do not have the digest or size that names them
    │   └── Untrusted       the policy does not accept an image
    ├── RegistryError       a registry could not be asked, or said no
    │   └── AuthError       credentials are missing or wrong
    └── LaunchFailed        status 125, 126 (cannot be executed) or 127 (not found)

A text is one line: what failed, on what, why. `remedy` says what to do about it, if that is known.
"""

from __future__ import annotations


class CowshedError(Exception):
    code = "error"
    status = 125

    def __init__(self, text: str, *, remedy: str = "") -> None:
        super().__init__(text)
        self.remedy = remedy


class BadUsage(CowshedError):
    code = "usage"


class ConfigError(CowshedError):
    code = "config"


class NotFound(CowshedError):
    code = "not-found"


class Unsupported(CowshedError):
    code = "unsupported"


class Ambiguous(CowshedError):
    code = "ambiguous"


class Conflict(CowshedError):
    code = "conflict"


class Busy(CowshedError):
    code = "busy"


class NoSpace(CowshedError):
    code = "no-space"


class StoreError(CowshedError):
    code = "store"


class NewerStore(StoreError):
    code = "newer-store"


class ImageError(CowshedError):
    code = "image"


class Tampered(ImageError):
    code = "tampered"


class Untrusted(ImageError):
    code = "untrusted"


class RegistryError(CowshedError):
    code = "registry"


class AuthError(RegistryError):
    code = "auth"


class LaunchFailed(CowshedError):
    code = "launch"

    def __init__(self, text: str, *, remedy: str = "", status: int = 125) -> None:
        super().__init__(text, remedy=remedy)
        self.status = status
