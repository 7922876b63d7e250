"""Device-mapper through libdevmapper: one function per request that the driver makes (libdevmapper.h, dmsetup(8)).

Nothing here needs udev or a node in /dev/mapper: tables name devices as MAJOR:MINOR. udev, where it runs, is told by
flags to keep its hands off our devices: it would open each to look for a file system, which makes them busy.

Errors are OSError with the kernel's errno. For tables, which the kernel explains in its log only, the text has what the
log says.
"""

from __future__ import annotations

import _thread
import os

from cowshed_driver_devicemapper import _abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

SONAME = "libdevmapper.so.1.02.1"
_CREATE, _RELOAD, _REMOVE, _SUSPEND, _RESUME, _INFO = 0, 1, 2, 4, 5, 6
_STATUS, _TABLE, _LIST, _LIST_VERSIONS, _MESSAGE = 10, 11, 13, 16, 17
# DM_UDEV_DISABLE_DM_RULES, _SUBSYSTEM_RULES, _DISK_RULES, _OTHER_RULES
_KEEP_OFF = 0x1 | 0x2 | 0x4 | 0x8

ffi: Any = _abi.ffi


class Info:
    """What the kernel says of a mapped device."""

    __slots__ = ("deferred", "major", "minor", "open_count", "read_only", "suspended")

    def __init__(
        self, major: int, minor: int, *, open_count: int = 0, suspended: bool = False, read_only: bool = False,
        deferred: bool = False,
    ) -> None:  # fmt: skip
        self.major, self.minor, self.open_count = major, minor, open_count
        self.suspended, self.read_only, self.deferred = suspended, read_only, deferred

    @property
    def number(self) -> str:
        """As tables name it."""
        return f"{self.major}:{self.minor}"


class Target:
    """A line of a table: start and length in sectors of 512 bytes, kind, and its parameters (or its status)."""

    __slots__ = ("kind", "length", "parameters", "start")

    def __init__(self, start: int, length: int, kind: str, parameters: str) -> None:
        self.start, self.length, self.kind, self.parameters = start, length, kind, parameters


class DeviceMapper:
    """The library, loaded. OSError ENOENT if it is not installed."""

    def __init__(self) -> None:
        try:
            self._library: Any = ffi.dlopen(SONAME)
        except OSError:
            raise FileNotFoundError(2, f"the library {SONAME} is not installed") from None
        self._lock = _thread.allocate_lock()  # the library keeps its descriptor in a variable
        self._library.dm_udev_set_sync_support(0)
        # It would print to stderr. Its words are those of the errno; any function that ignores what it gets will do.
        self._library.dm_log_with_errno_init(ffi.cast("void *", ffi.addressof(self._library_c(), "getpid")))

    @staticmethod
    def _library_c() -> Any:
        return ffi.dlopen(None)

    # ------------------------------------------------------------ what there is

    def library_version(self) -> str:
        return self._version(self._library.dm_get_library_version)

    def driver_version(self) -> str:
        """Of the kernel's device-mapper. OSError if it has none."""
        with self._lock:
            try:
                return self._version(self._library.dm_driver_version)
            finally:
                self._library.dm_lib_release()

    @staticmethod
    def _version(ask: Any) -> str:
        text = ffi.new("char[64]")
        if not ask(text, 64):
            raise OSError(6, "device-mapper does not answer")
        return str(ffi.string(text).decode())

    def targets(self) -> dict[str, str]:
        """The kinds of targets that the kernel has loaded, and their versions."""
        with _Task(self, _LIST_VERSIONS, "list device-mapper targets") as task:
            task.run()
            found: dict[str, str] = {}
            entry = self._library.dm_task_get_versions(task.task)
            while entry:
                name = ffi.string(ffi.cast("char *", ffi.addressof(entry, "name"))).decode()
                found[name] = ".".join(str(n) for n in entry.version)
                entry = _following("struct dm_versions *", entry)
            return found

    def names(self) -> list[str]:
        """All mapped devices of this machine."""
        with _Task(self, _LIST, "list mapped devices") as task:
            task.run()
            found: list[str] = []
            entry = self._library.dm_task_get_names(task.task)
            while entry and entry.dev:
                found.append(ffi.string(ffi.cast("char *", ffi.addressof(entry, "name"))).decode())
                entry = _following("struct dm_names *", entry)
            return found

    def info(self, name: str) -> Info | None:
        with _Task(self, _INFO, f"look at device {name}", name) as task:
            try:
                task.run()
            except OSError as error:
                if error.errno != 6:  # ENXIO: no such device
                    raise
                return None
            info = task.info()
            if not info.exists:
                return None
            return Info(
                int(info.major), int(info.minor), open_count=int(info.open_count), suspended=bool(info.suspended),
                read_only=bool(info.read_only), deferred=bool(info.deferred_remove),
            )  # fmt: skip

    def table(self, name: str) -> list[Target]:
        return self._lines(_TABLE, f"read the table of device {name}", name)

    def status(self, name: str) -> list[Target]:
        return self._lines(_STATUS, f"read the status of device {name}", name)

    def _lines(self, kind: int, what: str, name: str) -> list[Target]:
        with _Task(self, kind, what, name) as task:
            task.run()
            start, length = ffi.new("uint64_t *"), ffi.new("uint64_t *")
            target, parameters = ffi.new("char **"), ffi.new("char **")
            found: list[Target] = []
            entry = ffi.NULL
            while True:
                entry = self._library.dm_get_next_target(task.task, entry, start, length, target, parameters)
                if target[0]:
                    words = ffi.string(parameters[0]).decode() if parameters[0] else ""
                    found.append(Target(int(start[0]), int(length[0]), ffi.string(target[0]).decode(), words))
                if not entry:
                    return found

    # ------------------------------------------------------------ changing

    def create(self, name: str, target: Target, *, read_only: bool = False) -> Info:
        """Make a device of one target. Nothing is left of one that fails."""
        said = _KernelLog()
        try:
            with _Task(self, _CREATE, f"make device {name}", name) as task:
                task.check(self._library.dm_task_set_uuid(task.task, f"COWSHED-{name}".encode()))
                task.run()
            try:
                self.load(name, target, read_only=read_only)
            except OSError as error:
                self.remove(name)
                raise OSError(error.errno, f"{error.strerror}{said.since()}") from None
        finally:
            said.close()
        info = self.info(name)
        if info is None:
            raise OSError(6, f"device {name} is gone as soon as it is made")
        return info

    def load(self, name: str, target: Target, *, read_only: bool = False) -> None:
        """Give a device a table, or another one; it may be in use. Apart from CREATE: a request that is all in one
        loses the errno."""
        with _Task(self, _RELOAD, f"load the table of device {name}", name) as task:
            if read_only:
                task.check(self._library.dm_task_set_ro(task.task))
            task.check(
                self._library.dm_task_add_target(
                    task.task, target.start, target.length, target.kind.encode(), target.parameters.encode()
                )
            )
            task.run()
        self.resume(name)

    def suspend(self, name: str) -> None:
        """Hold all I/O; a file system mounted from the device is frozen first, with all of it written."""
        self._simple(_SUSPEND, f"suspend device {name}", name)

    def resume(self, name: str) -> None:
        with _Task(self, _RESUME, f"resume device {name}", name) as task:
            task.check(self._library.dm_task_set_cookie(task.task, ffi.new("uint32_t *"), _KEEP_OFF))
            task.run()

    def remove(self, name: str, *, deferred: bool = False) -> None:
        """Take a device away; deferred: the kernel does so with its last user. Absent is success, EBUSY one in use."""
        with _Task(self, _REMOVE, f"remove device {name}", name) as task:
            task.check(self._library.dm_task_set_cookie(task.task, ffi.new("uint32_t *"), _KEEP_OFF))
            if deferred:
                task.check(self._library.dm_task_deferred_remove(task.task))
            try:
                task.run()
            except OSError as error:
                if error.errno != 6:
                    raise

    def message(self, name: str, text: str) -> None:
        """Send a message to the target of a device (or, beginning with @, to device-mapper about it)."""
        with _Task(self, _MESSAGE, f"device {name}: {text}", name) as task:
            task.check(self._library.dm_task_set_sector(task.task, 0))
            task.check(self._library.dm_task_set_message(task.task, text.encode()))
            task.run()

    def _simple(self, kind: int, what: str, name: str) -> None:
        with _Task(self, kind, what, name) as task:
            task.run()


class _Task:
    """One request."""

    def __init__(self, mapper: DeviceMapper, kind: int, what: str, name: str = "") -> None:
        self._mapper, self._kind, self._what, self._name = mapper, kind, what, name

    def __enter__(self) -> _Task:
        library = self._mapper._library
        self._mapper._lock.acquire()
        self.task = library.dm_task_create(self._kind)
        try:
            self.check(bool(self.task))
            if self._name:
                self.check(library.dm_task_set_name(self.task, self._name.encode()))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        library = self._mapper._library
        if self.task:
            library.dm_task_destroy(self.task)
        library.dm_lib_release()  # closes /dev/mapper/control, which would go to every child else
        self._mapper._lock.release()

    def check(self, done: int | bool) -> None:
        if not done:
            raise OSError(12, f"{self._what}: libdevmapper refuses it")

    def run(self) -> None:
        library = self._mapper._library
        if not library.dm_task_run(self.task):
            number = library.dm_task_get_errno(self.task) or 5
            raise OSError(number, f"{self._what}: {os.strerror(number)}")

    def info(self) -> Any:
        info = ffi.new("struct dm_info *")
        self.check(self._mapper._library.dm_task_get_info(self.task, info))
        return info


class _KernelLog:
    """What device-mapper writes into the kernel's log from now on (Documentation/ABI/testing/dev-kmsg)."""

    def __init__(self) -> None:
        try:
            self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._fd = -1  # not to be read here: the errno has to do

    def since(self) -> str:
        said: list[str] = []
        while self._fd >= 0:
            try:
                record = os.read(self._fd, 8192).decode(errors="replace")
            except OSError:
                break  # EAGAIN: that was all
            text = record.partition(";")[2].partition("\n")[0]
            if text.startswith("device-mapper: "):
                said.append(text.removeprefix("device-mapper: "))
        return f" (kernel: {'; '.join(said)})" if said else ""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _following(kind: str, entry: Any) -> Any:
    return ffi.cast(kind, ffi.cast("char *", entry) + entry.next) if entry.next else None
