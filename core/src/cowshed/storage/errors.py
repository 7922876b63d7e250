"""The errors that leave a storage driver on purpose. OSError is the only other kind that may.

    StorageError
    ├── NotFound          the layer, or its parent, is not there
    ├── AlreadyExists     the same id with other arguments
    ├── InUse             something holds the layer; who, in `holders`
    ├── NoSpace           data, metadata, inodes or quota used up
    ├── TooDeep           more layers than the back end takes
    ├── Unsupported       an ability that this store does not have
    ├── BadOption         a driver option that is unknown, ill-typed, or fixed at creation
    ├── WrongStore        not mounted, swapped, another driver's, or of a newer format
    ├── Damaged           what lies on the back end contradicts itself
    ├── ToolFailed        a helper program or system call failed in a way not understood
    └── Cancelled         Host.step or Host.progress said stop; drivers let it pass

Each text is one line: what failed, on what, why. `remedy` says what to do about it, if that is known.
"""

from __future__ import annotations

from cowshed.storage.record import Enum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NewType

    LayerId = NewType("LayerId", str)  # made by the engine: 32 lower-case hex digits, never used again
else:

    def LayerId(value):
        return value


class StorageError(Exception):
    """Base of all errors that drivers raise on purpose; OSError is the only other kind that may leave one."""

    code = "storage"

    def __init__(self, text: str, *, layer: LayerId | None = None, remedy: str = "") -> None:
        super().__init__(text)
        self.layer, self.remedy = layer, remedy


class NotFound(StorageError):
    code = "not-found"


class AlreadyExists(StorageError):  # same id, other arguments
    code = "already-exists"


class InUse(StorageError):
    code = "in-use"

    def __init__(
        self, text: str, *, holders: Sequence[str] = (), layer: LayerId | None = None, remedy: str = ""
    ) -> None:
        super().__init__(text, layer=layer, remedy=remedy)
        self.holders = tuple(holders)


class SpaceKind(Enum):
    DATA = "data"
    METADATA = "metadata"
    INODES = "inodes"
    QUOTA = "quota"


class NoSpace(StorageError):
    code = "no-space"

    def __init__(
        self, text: str, *, what: SpaceKind = SpaceKind.DATA, layer: LayerId | None = None, remedy: str = ""
    ) -> None:
        super().__init__(text, layer=layer, remedy=remedy)
        self.what = what


class TooDeep(StorageError):
    code = "too-deep"


class Unsupported(StorageError):
    code = "unsupported"


class BadOption(StorageError):
    code = "bad-option"

    def __init__(self, text: str, *, option: str = "", layer: LayerId | None = None, remedy: str = "") -> None:
        super().__init__(text, layer=layer, remedy=remedy)
        self.option = option  # its name, if it is about one


class WrongStore(StorageError):  # not mounted, swapped pool, other driver's root, newer format
    code = "wrong-store"


class Damaged(StorageError):
    code = "damaged"


class ToolFailed(StorageError):  # a helper or system call failed in a way not understood
    code = "tool-failed"


class Cancelled(StorageError):  # raised by Host.progress and Host.step; drivers let it pass
    code = "cancelled"
