"""Control groups by way of systemd: each container is a transient scope unit, which systemd makes, hands over
(Delegate) and knows the limits of, so that it does not undo them (org.freedesktop.systemd1(5), systemd's Control Group
APIs and Delegation).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` brings enum
import os
from struct import error as _StructError

from cowshed_linux import process
from cowshed_runtime.cgroup import dbus, devices, version2
from cowshed_runtime.cgroup.files import read, write
from cowshed_runtime.cgroup.group import Group
from cowshed_runtime.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cowshed_runtime.cgroup.layout import Layout

    Property = tuple[str, tuple[str, Any]]

PREFIX, SUBGROUP = "org.systemd.property.", "run.oci.systemd.subgroup"
_NAME, _MANAGER, _AT = "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager", "/org/freedesktop/systemd1"
_GONE = ("org.freedesktop.systemd1.NoSuchUnit", "org.freedesktop.systemd1.UnitNotLoaded")
_INFINITY = 2**64 - 1
_WORDS = {"t": "uint64", "u": "uint32", "x": "int64", "i": "int32", "y": "byte"}
# What an annotation may set. It may come from an image: nothing that runs programs (ExecStart: CVE-2024-3154), pulls
# other units up or down (Wants, Conflicts, OnFailure), or takes the scope out of its place (Slice, PIDs, Delegate).
PROPERTIES = {
    **dict.fromkeys(("After", "Before", "Documentation"), "as"),
    **dict.fromkeys(("CollectMode", "Description", "KillMode", "ManagedOOMSwap", "ManagedOOMMemoryPressure",
                     "ManagedOOMPreference"), "s"),
    **dict.fromkeys(("TimeoutStopUSec", "RuntimeMaxUSec", "CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec", "CPUWeight",
                     "StartupCPUWeight", "IOWeight", "StartupIOWeight", "MemoryMin", "MemoryLow", "MemoryHigh",
                     "MemoryMax", "MemorySwapMax", "TasksMax"), "t"),
    **dict.fromkeys(("DefaultDependencies", "SendSIGHUP", "SendSIGKILL", "CPUAccounting", "IOAccounting",
                     "MemoryAccounting", "TasksAccounting", "IPAccounting"), "b"),
    **dict.fromkeys(("AllowedCPUs", "AllowedMemoryNodes"), "ay"),
    "KillSignal": "i",
}  # fmt: skip


def place(path: str, name: str, *, user: bool) -> tuple[str, str]:
    """Slice and unit for linux.cgroupsPath, which is `slice:prefix:name` here; pure. SpecError."""
    default = "user.slice" if user else "system.slice"
    parts = path.split(":") if path else [default, "cowshed", name]
    if len(parts) != 3 or not parts[2]:
        raise SpecError(f"linux.cgroupsPath: with systemd it is slice:prefix:name, not {path!r}")
    slice_, prefix, last = parts[0] or default, parts[1], parts[2]
    unit = f"{prefix}-{last}.scope" if prefix else f"{last}.scope"
    expand(slice_)
    if len(unit) > 255 or not set(unit) <= _UNIT:
        raise SpecError(f"linux.cgroupsPath: {unit!r} is no name of a unit")
    return slice_, unit


_UNIT = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:-_.\\@")


def expand(slice_: str) -> str:
    """The group of a slice: /a.slice/a-b.slice for a-b.slice (systemd.slice(5)); pure. SpecError."""
    if slice_ == "-.slice":
        return ""
    stem = slice_.removesuffix(".slice")
    parts = stem.split("-")
    if stem == slice_ or not set(stem) <= _UNIT or not all(parts) or stem[:1] == ".":
        raise SpecError(f"linux.cgroupsPath: {slice_!r} is no name of a slice")
    return "".join(f"/{'-'.join(parts[: at + 1])}.slice" for at in range(len(parts)))


def properties(resources: dict[str, Any], *, second: bool) -> Iterator[Property]:
    """What systemd is to know of linux.resources on version 2 (second) or 1; pure. It writes the files of these again
    whenever it sets anything of the unit; the rest is written to the files alone, which it leaves as they are."""
    memory, cpu, block = (resources.get(key) or {} for key in ("memory", "cpu", "blockIO"))
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    if limit:
        yield "MemoryMax" if second else "MemoryLimit", ("t", _size(limit))
    if second and memory.get("reservation"):
        yield "MemoryLow", ("t", _size(memory["reservation"]))
    if second and (swap < 0 or swap > limit > 0 or swap == limit > 0):
        yield "MemorySwapMax", ("t", _size(swap if swap < 0 else swap - limit))
    if cpu.get("shares"):
        yield ("CPUWeight", ("t", version2.weight(cpu["shares"]))) if second else ("CPUShares", ("t", cpu["shares"]))
    period = cpu.get("period") or 100_000
    if cpu.get("period"):
        yield "CPUQuotaPeriodUSec", ("t", period)
    if cpu.get("quota"):
        # systemd keeps whole percents of a processor: never less than was asked for
        share = cpu["quota"] * 1_000_000 / period
        yield "CPUQuotaPerSecUSec", ("t", _INFINITY if share < 0 else -int(-share // 10_000) * 10_000)
    if second:
        for key, name in (("cpus", "AllowedCPUs"), ("mems", "AllowedMemoryNodes")):
            if cpu.get(key):
                yield name, ("ay", mask(cpu[key]))
    count = (resources.get("pids") or {}).get("limit")
    if count is not None:
        yield "TasksMax", ("t", _size(count or 1))  # 0, which systemd does not take, stands in the file
    if block.get("weight"):
        scaled = 1 + (block["weight"] - 10) * 9999 // 990
        yield ("IOWeight", ("t", scaled)) if second else ("BlockIOWeight", ("t", block["weight"]))
    if second:
        yield from _unified(resources.get("unified") or {})


_SIZES = {
    "memory.min": "MemoryMin", "memory.low": "MemoryLow", "memory.high": "MemoryHigh", "memory.max": "MemoryMax",
    "memory.swap.max": "MemorySwapMax", "pids.max": "TasksMax", "cpu.weight": "CPUWeight",
}  # fmt: skip
_SUFFIXES = {"k": 10, "m": 20, "g": 30, "t": 40}


def _unified(files: dict[str, str]) -> Iterator[Property]:
    """What systemd is to know of files of version 2. What is no value of a file is left to that, which refuses it."""
    for file, text in files.items():
        try:
            words = text.split()
            if file in _SIZES:
                yield _SIZES[file], ("t", _number(text.strip()))
            elif file == "io.weight" and words and words[:-1] in ([], ["default"]):
                yield "IOWeight", ("t", int(words[-1]))
            elif file in ("cpuset.cpus", "cpuset.mems"):
                yield "AllowedCPUs" if file == "cpuset.cpus" else "AllowedMemoryNodes", ("ay", mask(text))
            elif file == "cpu.max" and words:
                period = int(words[1]) if words[1:] else 100_000
                quota = -1 if words[0] == "max" else int(words[0])
                yield from properties({"cpu": {"quota": quota, "period": period}}, second=True)
        except ValueError:
            continue


def _number(text: str) -> int:
    shift = _SUFFIXES.get(text[-1:].lower(), 0)
    return _INFINITY if text == "max" else int(text[:-1] if shift else text) << shift


def _size(value: int) -> int:
    return _INFINITY if value < 0 else value


def mask(text: str) -> list[int]:
    """The bytes of a set of numbers, the lowest first: [11, 1] for 0-1,3,8. ValueError."""
    bits = 0
    for part in text.split(","):
        low, _, high = part.strip().partition("-")
        if low:
            bits |= (1 << int(high or low) + 1) - (1 << int(low))
    return list(bits.to_bytes((bits.bit_length() + 7) // 8, "little"))


def annotated(annotations: dict[str, str]) -> Iterator[Property]:
    """The properties that annotations ask for, in GVariant's text format; pure. SpecError for one that is not for a
    container to set, or of another type."""
    for key, text in annotations.items():
        if not key.startswith(PREFIX):
            continue
        name, seconds = key.removeprefix(PREFIX), False
        if name not in PROPERTIES and name.endswith("Sec") and f"{name[:-3]}USec" in PROPERTIES:
            name, seconds = f"{name[:-3]}USec", True
        if name not in PROPERTIES:
            raise SpecError(f"annotations.{key}: is no property that a container may set")
        kind = PROPERTIES[name]
        try:
            value = _value("u" if seconds else kind, text.strip())
            dbus.put("v", [(kind, value * 1_000_000 if seconds else value)], bytearray())
        except (ValueError, ArithmeticError, _StructError):
            raise SpecError(f"annotations.{key}: {text!r} is no value of type {_WORDS.get(kind, kind)}") from None
        yield name, (kind, value * 1_000_000 if seconds else value)


def _value(kind: str, text: str) -> Any:
    if kind in _WORDS:
        return int(text.removeprefix(f"{_WORDS[kind]} "), 0)
    if kind == "b":
        return {"true": True, "false": False}[text] if text in ("true", "false") else int("")
    if kind == "s":
        quote = text[:1]
        if len(text) < 2 or quote not in "'\"" or text[-1] != quote or quote in text[1:-1] or "\\" in text:
            raise ValueError(text)
        return text[1:-1]
    if text[:1] != "[" or text[-1:] != "]":
        raise ValueError(text)
    inner = text[1:-1].strip()
    return [_value(kind[1:], part.strip()) for part in inner.split(",")] if inner else []


class Manager:
    """systemd, the system's or (user) that of this user, while connected. OSError if it cannot be reached."""

    def __init__(self, *, user: bool) -> None:
        tried = []
        for address, destination in _addresses(user=user):
            try:
                self._bus = dbus.Connection(address, destination)
                break
            except OSError as error:
                tried.append(f"{address}: {error.strerror or error}")
        else:
            whose = "this user's systemd" if user else "systemd"
            raise OSError(111, f"{whose} cannot be reached ({'; '.join(tried)}): use the manager cgroupfs instead")
        if destination:
            self._bus.match(f"type='signal',interface='{_MANAGER}',member='JobRemoved'")
            self._call("Subscribe")

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        self._bus.close()

    def _call(self, member: str, signature: str = "", *values: Any) -> list[Any]:
        return self._bus.call(_AT, _MANAGER, member, signature, *values)

    def _get(self, path: str, interface: str, name: str) -> Any:
        found = self._bus.call(path, "org.freedesktop.DBus.Properties", "Get", "ss", f"{_NAME}.{interface}", name)
        return found[0][1]

    def _finish(self, job: str) -> str:
        """Wait for a job; what became of it."""
        while True:
            signal = self._bus.signal()
            if signal.member == "JobRemoved" and signal.body[1] == job:
                return str(signal.body[3])

    def start(self, unit: str, wanted: list[Property]) -> str:
        """Make and start a transient unit; its control group. FileExistsError; OSError with systemd's words."""
        arguments: tuple[str, str, list[Property], list[Any]] = (unit, "fail", wanted, [])
        try:
            (job,) = self._call("StartTransientUnit", "ssa(sv)a(sa(sv))", *arguments)
        except dbus.Refused as error:
            if not error.name.endswith(".UnitExists"):
                raise OSError(5, f"systemd refuses {unit}: {error.strerror}") from None
            self._forget(unit)  # it may be what is left of one that failed
            try:
                (job,) = self._call("StartTransientUnit", "ssa(sv)a(sa(sv))", *arguments)
            except dbus.Refused as again:
                raise FileExistsError(17, f"systemd refuses {unit}: {again.strerror}") from None
        result = self._finish(job)
        if result != "done":
            self._forget(unit)
            raise OSError(5, f"systemd could not start {unit}: {result}")
        return self.group(unit)

    def group(self, unit: str) -> str:
        """The control group of a unit that runs, "" if it has none."""
        (path,) = self._call("GetUnit", "s", unit)
        return str(self._get(path, "Scope", "ControlGroup")).rstrip("/")

    def own(self) -> str:
        """systemd's own control group, in which all others are."""
        return str(self._get(_AT, "Manager", "ControlGroup")).rstrip("/")

    def set(self, unit: str, wanted: list[Property]) -> None:
        try:
            self._call("SetUnitProperties", "sba(sv)", unit, True, wanted)
        except dbus.Refused as error:
            raise OSError(5, f"systemd refuses the limits of {unit}: {error.strerror}") from None

    def attach(self, unit: str, pid: int) -> None:
        """Move a process of this user into a unit, where he may not do so himself."""
        try:
            self._call("AttachProcessesToUnit", "ssau", unit, "", [pid])
        except dbus.Refused as error:
            raise OSError(5, f"systemd does not move process {pid} to {unit}: {error.strerror}") from None

    def stop(self, unit: str) -> None:
        """Stop a unit, and forget it; absent is success."""
        try:
            (job,) = self._call("StopUnit", "ss", unit, "replace")
            self._finish(job)
        except dbus.Refused as error:
            if error.name not in _GONE:
                raise OSError(5, f"systemd does not stop {unit}: {error.strerror}") from None
        self._forget(unit)

    def _forget(self, unit: str) -> None:
        try:
            self._call("ResetFailedUnit", "s", unit)
        except dbus.Refused:
            return  # it is not loaded: nothing to forget


def _addresses(*, user: bool) -> Iterator[tuple[str, str]]:
    """Sockets, and the name on those of a bus. systemd's own needs no bus to run."""
    run = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    yield (f"{run}/systemd/private" if user else "/run/systemd/private"), ""
    if not user:
        yield "/run/dbus/system_bus_socket", _NAME
        return
    for option in os.environ.get("DBUS_SESSION_BUS_ADDRESS", "").removeprefix("unix:").split(","):
        key, _, value = option.partition("=")
        if key in ("path", "abstract"):
            yield ("@" if key == "abstract" else "") + value, _NAME
    yield f"{run}/bus", _NAME


class Scope(Group):
    """The groups of a container that is a scope of systemd. user: of this user's systemd."""

    def __init__(self, name: str, path: str, unit: str, slice_: str, within: Layout, *, user: bool) -> None:
        super().__init__(name, path, within)
        self.unit, self.slice, self.user = unit, slice_, user
        self.rootless = self.foreign = user
        self._scope = path
        self._asked: list[Property] = []
        self._subgroup = ""
        self._manager: Manager | None = None

    def adopt(self, config: dict[str, Any]) -> None:
        super().adopt(config)
        annotations = config.get("annotations") or {}
        self._asked = list(annotated(annotations))
        self._subgroup = annotations.get(SUBGROUP) or ""
        if self._subgroup and ("/" in self._subgroup or self._subgroup.startswith(".") or "\0" in self._subgroup):
            raise SpecError(f"annotations.{SUBGROUP}: {self._subgroup!r} must be the name of one group")
        self._go(self._scope)

    def create(self, resources: dict[str, Any]) -> None:
        """As of any group. A scope must have a process: one that does nothing holds it until the container's is in."""
        self.holder = _hold()
        try:
            with Manager(user=self.user) as manager:
                self._go(manager.start(self.unit, self._properties(resources)))
        except BaseException:
            self.settled()  # the unit, if there is one, is another's
            raise
        try:
            if self._subgroup and self.layout.v2:
                # The scope's group can hand controllers down on version 2 only when it is empty itself.
                os.makedirs(self.layout.v2 + self.path, 0o755, exist_ok=True)
                write(f"{self.layout.v2}{self.path}/cgroup.procs", str(self.holder))
            super().create(resources)
        except BaseException:
            self.settled()
            self._discard()
            raise

    def _properties(self, resources: dict[str, Any]) -> list[Property]:
        wanted: dict[str, tuple[str, Any]] = {
            "Description": ("s", f"cowshed container {self.name}"), "Slice": ("s", self.slice), "Delegate": ("b", True),
            "PIDs": ("au", [self.holder]), "DefaultDependencies": ("b", False), "CollectMode": ("s", _COLLECT),
            "MemoryAccounting": ("b", True), "CPUAccounting": ("b", True), "TasksAccounting": ("b", True),
            "IOAccounting" if self._second else "BlockIOAccounting": ("b", True),
        }  # fmt: skip
        limits = dict(properties(resources, second=self._second))
        return [*{**wanted, **limits, **dict(self._asked)}.items(), *self._devices(resources)]

    def _devices(self, resources: dict[str, Any]) -> Iterator[Property]:
        """What systemd is to know of the device rules: it sets its own again whenever it sets anything of the unit."""
        rules = self._rules(resources)
        if not rules:
            return
        found = devices.allowed(rules)
        if found is None and self.layout.find("devices"):
            raise OSError(95, "the device rules: systemd can only allow devices by name: use the manager cgroupfs")
        # Of what it has no words for, a program of ours decides alone (version 2).
        yield "DevicePolicy", ("s", "auto" if found is None else "strict")
        yield "DeviceAllow", ("a(ss)", [])  # else they would be added to those that it has
        yield "DeviceAllow", ("a(ss)", found or [])

    @property
    def _second(self) -> bool:
        return not self.layout.v1

    def _go(self, scope: str) -> None:
        self._scope, self.path = scope, f"{scope}/{self._subgroup}" if self._subgroup else scope

    def prepare(self) -> None:
        self._manager = Manager(user=self.user)

    def attach(self, pid: int) -> None:
        assert self._manager
        self._manager.attach(self.unit, pid)

    def settled(self) -> None:
        if self._manager:
            self._manager.close()
            self._manager = None
        if self.holder:
            os.kill(self.holder, 9)
            os.waitpid(self.holder, 0)
            self.holder = 0

    def update(self, resources: dict[str, Any]) -> None:
        wanted = [*properties(resources, second=self._second), *self._devices(resources)]
        if wanted:
            kept = self._own()
            with Manager(user=self.user) as manager:
                manager.set(self.unit, wanted)
            for path, value in kept.items() - self._own().items():
                write(path, value)
        super().update(resources)

    def _own(self) -> dict[str, str]:
        """What stands in files that systemd writes, and cannot be told all of."""
        found = {}
        for file in ("cpu.max", "memory.oom.group") if self._second else ():
            path = f"{self.layout.v2}{self._scope}/{file}"
            if os.path.exists(path):
                found[path] = read(path)
        return found

    def remove(self) -> None:
        self.settled()
        super().remove()
        self._discard()

    def _discard(self) -> None:
        with Manager(user=self.user) as manager:
            manager.stop(self.unit)

    def record(self) -> dict[str, Any]:
        return {**super().record(), "unit": self.unit, "slice": self.slice, "user": self.user}


_COLLECT = "inactive-or-failed"


def _hold() -> int:
    """A child that does nothing and dies with this process."""
    pid = os.fork()
    if pid == 0:
        try:
            process.prctl(process.PR_SET_PDEATHSIG, 9)
            while True:
                _signal.pause()
        finally:
            os._exit(0)
    return pid
