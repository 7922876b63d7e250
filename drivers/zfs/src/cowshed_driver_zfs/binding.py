"""libzfs_core, the part of ZFS's C interface that is stable (libzfs_core.h): no `zfs` command is run for these calls.

Both libraries are loaded by soname, the same for OpenZFS 2.0 to 2.4. Every call that fails raises OSError with the
errno that the kernel gave. All calls block, and a call that the kernel has begun is never interrupted: it is done when
it returns, on disk too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from cowshed.storage.errors import ToolFailed
from cowshed_driver_zfs import _abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    Values = Mapping[str, str | int | bool | None]

ffi: Any = _abi.ffi
_NULL: Any = ffi.NULL
_FILE_SYSTEM = 2  # LZC_DATSET_TYPE_ZFS
_UNIQUE_NAME = 1  # NV_UNIQUE_NAME
_INSTRUCTIONS, _MEMORY = 10**8, 64 << 20  # what a program may use at most; the kernel allows 10**8 and 100 MiB
_KINDS = {21: "boolean_value", 5: "int32", 7: "int64", 8: "uint64", 9: "string", 19: "nvlist"}  # data_type_t
_C_TYPES = {
    "boolean_value": "boolean_t *",
    "int32": "int32_t *",
    "int64": "int64_t *",
    "uint64": "uint64_t *",
    "string": "const char **",
    "nvlist": "nvlist_t **",
}
# ioctl(2) of /dev/zfs that `zfs diff` uses and the library lacks. Of zfs_cmd_t, only what lies before the first member
# that has ever moved: the name, at zc_value the other name, at zc_cookie the descriptor. The rest stays zero.
_DEVICE = "/dev/zfs"
_IOC_DIFF, _COMMAND, _VALUE, _COOKIE = 0x5A36, 1 << 15, 4144, 12616
_FIRST_OWN_ERROR = 1024  # zfs_errno_t: numbers from here on are no errno of Linux
_loaded: tuple[Any, Any] | None = None


def _libraries() -> tuple[Any, Any]:
    global _loaded
    if _loaded is None:
        try:
            _loaded = ffi.dlopen("libnvpair.so.3"), ffi.dlopen("libzfs_core.so.3")
        except OSError as error:
            remedy = "install the tools of ZFS (Debian: zfsutils-linux)"
            raise ToolFailed(f"the library of ZFS cannot be loaded: {error}", remedy=remedy) from None
    return _loaded


class Zfs:
    """An opened /dev/zfs, until close(). Names are those of datasets (`pool/…`) and snapshots (`pool/…@name`).

    Raises ToolFailed if the library is missing, OSError if the kernel has no ZFS or this user may not use it.
    """

    def __init__(self) -> None:
        self._nv, self._core = _libraries()
        self._open = False
        _check(self._core.libzfs_core_init(), f"open {_DEVICE}")
        self._open = True

    def close(self) -> None:
        if self._open:
            self._open = False
            self._core.libzfs_core_fini()

    # ------------------------------------------------------------ datasets

    def create(self, name: str) -> None:
        self._call("lzc_create", name, name.encode(), _FILE_SYSTEM, _NULL, _NULL, 0)

    def clone(self, name: str, origin: str, properties: Values) -> None:
        """A new dataset that shares all with a snapshot. FileExistsError if there is one of the name, also when the
        snapshot is missing, which is FileNotFoundError."""
        self._call("lzc_clone", name, name.encode(), origin.encode(), self._list(properties))

    def destroy(self, name: str) -> None:
        """OSError EBUSY while it is mounted anywhere or has snapshots."""
        self._call("lzc_destroy", name, name.encode())

    def rename(self, source: str, target: str) -> None:
        """Works on a mounted dataset too; its mounts stay."""
        self._call("lzc_rename", source, source.encode(), target.encode())

    def promote(self, name: str) -> None:
        """Let a clone and its origin change places: the snapshot it was made of, and all before, become its own."""
        conflict = ffi.new("char[]", 256)
        self._call("lzc_promote", name, name.encode(), conflict, 256)

    def exists(self, name: str) -> bool:
        self._require_open()
        return bool(self._core.lzc_exists(name.encode()))

    # ------------------------------------------------------------ snapshots

    def snapshot(self, name: str, properties: Values) -> None:
        self._many("lzc_snapshot", [name], self._list(properties))

    def destroy_snapshots(self, names: Sequence[str]) -> None:
        """One that is missing is no error. One that is held, or has clones, is destroyed when nothing needs it any
        more."""
        self._many("lzc_destroy_snaps", names, 1)

    def hold(self, name: str, tag: str) -> int:
        """Keep a snapshot until the descriptor that is returned is closed, or the process has died."""
        fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        errors = ffi.new("nvlist_t **")
        try:
            self._call("lzc_hold", name, self._list({name: tag}), fd, errors)
        except BaseException:
            os.close(fd)
            raise
        finally:
            self._free(errors)
        return fd

    def changed(self, lower: str, upper: str, fd: int) -> None:
        """Write to fd which objects differ between two snapshots, the second of which came from the first: records of
        three 64-bit numbers (dmu_diff_record_t)."""
        self._require_open()
        command = bytearray(_COMMAND)
        for place, name in ((0, upper), (_VALUE, lower)):
            raw = name.encode()
            command[place : place + len(raw)] = raw
        struct.pack_into("=Q", command, _COOKIE, fd)
        device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, _IOC_DIFF, command)
        except OSError as error:
            raise OSError(error.errno, f"compare {upper} with {lower}: {error.strerror}") from None
        finally:
            os.close(device)

    def _many(self, call: str, names: Sequence[str], argument: Any) -> None:
        errors = ffi.new("nvlist_t **")
        try:
            self._call(call, names[0], self._list(dict.fromkeys(names)), argument, errors)
        finally:
            self._free(errors)

    # ------------------------------------------------------------ pools

    def sync(self, pool: str) -> None:
        """Return when all that was written to the pool before is on disk, and its figures are those of what is."""
        result = ffi.new("nvlist_t **")
        try:
            self._call("lzc_sync", pool, pool.encode(), self._list({"force": False}), result)
        finally:
            self._free(result)

    def program(self, pool: str, text: str, arguments: Values) -> str:
        """Run a channel program (zfs-program(8)) that changes nothing and returns a string: it sees one moment.

        Raises ToolFailed with what the program says.
        """
        result = ffi.new("nvlist_t **")
        try:
            self._require_open()
            number = self._core.lzc_channel_program_nosync(
                pool.encode(), text.encode(), _INSTRUCTIONS, _MEMORY, self._list(arguments), result
            )
            answer = self.values(result[0]) if result[0] != _NULL else {}
        finally:
            self._free(result)
        if "error" in answer:
            said = " ".join(str(answer["error"]).split())
            raise ToolFailed(f"a channel program failed on pool {pool}: {said}")
        _check(number, f"channel program on {pool}")
        return str(answer["return"])

    # ------------------------------------------------------------ streams

    def send(self, snapshot: str, origin: str | None, fd: int) -> None:
        self._call(
            "lzc_send", snapshot, snapshot.encode(), _NULL if origin is None else ffi.new("char[]", origin.encode()),
            fd, 0,
        )  # fmt: skip

    def receive(self, snapshot: str, origin: str | None, properties: Values, fd: int) -> None:
        start = _NULL if origin is None else ffi.new("char[]", origin.encode())
        self._call("lzc_receive", snapshot, snapshot.encode(), self._list(properties), start, 0, 0, fd)

    # ------------------------------------------------------------ calling

    def _require_open(self) -> None:
        if not self._open:
            raise ToolFailed("this store of driver zfs has been closed", remedy="open it again")

    def _call(self, name: str, on: str, *arguments: Any) -> None:
        self._require_open()
        _check(getattr(self._core, name)(*arguments), f"{name} {on}")

    def _list(self, values: Values) -> Any:
        """An nvlist of names with a number, a string, yes or no, or nothing (None)."""
        place = ffi.new("nvlist_t **")
        _check(self._nv.nvlist_alloc(place, _UNIQUE_NAME, 0), "nvlist_alloc")
        made = ffi.gc(place[0], self._nv.nvlist_free)
        for name, value in values.items():
            raw = name.encode()
            if value is None:
                number = self._nv.nvlist_add_boolean(made, raw)
            elif isinstance(value, bool):
                number = self._nv.nvlist_add_boolean_value(made, raw, value)
            elif isinstance(value, int):
                number = self._nv.nvlist_add_uint64(made, raw, value)
            else:
                number = self._nv.nvlist_add_string(made, raw, value.encode())
            _check(number, f"nvlist_add {name}")
        return made

    def values(self, made: Any) -> dict[str, object]:
        """What an nvlist holds; None for a kind of value that no call here returns."""
        found: dict[str, object] = {}
        pair = _NULL
        while (pair := self._nv.nvlist_next_nvpair(made, pair)) != _NULL:
            kind = _KINDS.get(self._nv.nvpair_type(pair))
            value: object = None
            if kind is not None:
                place = ffi.new(_C_TYPES[kind])
                _check(getattr(self._nv, f"nvpair_value_{kind}")(pair, place), f"nvpair_value_{kind}")
                value = place[0]
                if kind == "string":
                    value = ffi.string(place[0]).decode("utf-8", "surrogateescape")
                elif kind == "nvlist":
                    value = self.values(place[0])
            found[ffi.string(self._nv.nvpair_name(pair)).decode("utf-8", "surrogateescape")] = value
        return found

    def _free(self, place: Any) -> None:
        if place[0] != _NULL:
            self._nv.nvlist_free(place[0])


def _check(number: int, what: str) -> None:
    if number:
        said = os.strerror(number) if number < _FIRST_OWN_ERROR else f"error {number} of ZFS"
        raise OSError(number if number < _FIRST_OWN_ERROR else errno.EIO, f"{what}: {said}")
