"""What a driver does outside its own root, written down: to be read, counted, and played back without the kernel.

    with Trace(path) as trace:
        driver = plugin.open(root, options, Recorder(EngineHost(), trace), store=store)

writes one JSON object for each command, ioctl, library call, mount and sync (`kind`), when it has ended: what it was
given, what came back, the error with its errno, and how many seconds it took. `n` numbers them in the order in which
they began, `within` is the number of what they are a part of. `Replay(path)` is a `Host` that does none of it and gives
the same answers in the same order.

A file may hold what came back of tools: it is made with mode 0600.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import sys
from threading import Lock, local
from time import monotonic

from cowshed.storage import api, errors
from cowshed.storage.errors import StorageError, ToolFailed
from cowshed.storage.kit.counting import Sums, Watched, last

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Any, Self, TypeVar

    T = TypeVar("T")
    Record = dict[str, Any]

FORMAT = 1
_ROOT = "{root}"  # stands for the store's root in a trace, so that it plays back elsewhere
_LONGEST = 1 << 16  # bytes of one value that are kept
_RANDOM = re.compile(r"[0-9a-f]{8,}(-[0-9a-f]{4,})*")  # ids: others each time
_PLAIN = (str, int, float, bool, bytes, type(None))


class Mismatch(AssertionError):
    """A driver does something else than what was recorded."""


# ---------------------------------------------------------------- values


def _written(value: object, root: str) -> Any:
    """A value as JSON has it; what it has no word for is shown and cannot be played back."""
    if isinstance(value, str):
        text = value.replace(root, _ROOT) if root else value
        return text if len(text) <= _LONGEST else {"shown": f"a text of {len(text)} letters"}
    if isinstance(value, bool | int | float | None):
        return value
    if isinstance(value, bytes):
        if len(value) > _LONGEST:
            return {"shown": f"{len(value)} bytes"}
        return {"bytes": base64.b64encode(value).decode("ascii")}
    names = getattr(value, "_fields", None) or getattr(type(value), "__match_args__", ()) or _slots(type(value))
    if names and not isinstance(value, type):
        fields = {name: _written(getattr(value, name), root) for name in names}
        return {"record": f"{type(value).__module__}:{type(value).__qualname__}", "fields": fields}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_written(one, root) for one in value]}
    if isinstance(value, dict):
        return {"dict": [[_written(key, root), _written(one, root)] for key, one in value.items()]}
    return {"shown": repr(value)[:200]}


def _slots(kind: type) -> tuple[str, ...]:
    slots = getattr(kind, "__slots__", ())
    return tuple(slots) if isinstance(slots, tuple | list) else ()


def _read(value: Any, root: str) -> Any:
    """What `_written` has written. Mismatch for what could only be shown."""
    if isinstance(value, str):
        return value.replace(_ROOT, root)
    if not isinstance(value, dict):
        return value
    ((kind, said), *_) = value.items()
    if kind == "bytes":
        return base64.b64decode(said)
    if kind == "list":
        return [_read(one, root) for one in said]
    if kind == "tuple":
        return tuple(_read(one, root) for one in said)
    if kind == "dict":
        return {_read(key, root): _read(one, root) for key, one in said}
    if kind == "record":
        module, _, name = said.partition(":")
        __import__(module)
        kind, fields = getattr(sys.modules[module], name), {k: _read(one, root) for k, one in value["fields"].items()}
        if issubclass(kind, tuple):
            return kind(**fields)
        made = object.__new__(kind)  # as a copy is made: what its constructor takes is its own affair
        for key, one in fields.items():
            object.__setattr__(made, key, one)
        return made
    raise Mismatch(f"the trace only shows this value, and does not hold it: {said}")


def _known_to(function: Callable[..., object], root: str) -> Record:
    """The plain values that a function has from where it was written: what a `lambda` without arguments works on."""
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None) or ()
    if code is None:
        return {}
    found = {}
    for name, cell in zip(code.co_freevars, cells, strict=True):
        try:
            value = cell.cell_contents
        except ValueError:
            continue  # not set yet
        if isinstance(value, _PLAIN):
            found[name] = _written(value, root)
    return found


def _shape(value: Any) -> str:
    """A value as it is compared: ids are others each time."""
    return _RANDOM.sub("#", json.dumps(value, sort_keys=True))


def described(plan: api.MountPlan, root: str = "") -> list[Any]:
    """The steps of a plan as a trace has them: [kind, fields by name]."""
    return [step_described(step, root) for step in plan.steps]


def step_described(step: api.Mount, root: str = "") -> list[Any]:
    names = type(step).__match_args__
    return [type(step).__name__, {name: _plain(getattr(step, name), root) for name in names}]


def _plain(value: object, root: str) -> Any:
    """A value of a step, for reading only."""
    if isinstance(value, api.Step):
        return f"step {value.index}" + (f" /{value.subpath}" if value.subpath else "")
    if isinstance(value, tuple):
        return [_plain(one, root) for one in value]
    return _written(value, root)


def _told(error: BaseException) -> Record:
    found: Record = {"error": type(error).__name__, "text": str(error)}
    if isinstance(error, OSError):
        number = error.errno or 0
        found.update(errno=number, code=errno.errorcode.get(number, ""), text=error.strerror or str(error))
        if isinstance(error.filename, str):
            found["path"] = error.filename
    if isinstance(error, StorageError):
        found["remedy"] = error.remedy
    return found


# ---------------------------------------------------------------- writing


class Trace:
    """A file of such lines, and sums of them. Several processes may append to one file; it is made if need be.

    path: "-" is standard error. root: the store's, which is written as {root}.
    """

    def __init__(self, path: str, root: str = "") -> None:
        self.root, self.sums = root, Sums()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.dup(2) if path == "-" else os.open(path, flags, 0o600)
        self._lock, self._count, self._here = Lock(), 0, local()
        self.write({"kind": "begin", "format": FORMAT, "pid": os.getpid(), "root": root})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write the sums, and close the file; repeatable."""
        if self._fd >= 0:
            self.write({"kind": "summary", "pid": os.getpid(), "sums": self.sums.rows()})
            os.close(self._fd)
            self._fd = -1

    def write(self, record: Record) -> None:
        """One line, at once, so that a process that is killed loses none."""
        line = json.dumps(record, ensure_ascii=False) + "\n"
        os.write(self._fd, line.encode("utf-8", "surrogateescape"))

    def doing(self, kind: str, name: str, **given: Any) -> Doing:
        """`with trace.doing(…) as it:` a record of what the block does; it["…"] = adds to it."""
        return Doing(self, {"kind": kind, "name": name, **given})

    def _begin(self, record: Record) -> None:
        with self._lock:
            self._count += 1
            record["n"] = self._count
        stack = self._here.__dict__.setdefault("stack", [])
        record["within"] = stack[-1] if stack else 0
        stack.append(record["n"])

    def _end(self, record: Record) -> None:
        self._here.stack.pop()
        self.sums.add(record["kind"], record["name"], record["seconds"], failed="error" in record)
        self.write({"n": record.pop("n"), "within": record.pop("within"), "pid": os.getpid(), **record})


class Doing:
    """See `Trace.doing`."""

    def __init__(self, trace: Trace, record: Record) -> None:
        self._trace, self._record = trace, record

    def __enter__(self) -> Self:
        self._trace._begin(self._record)
        self._since = monotonic()
        return self

    def __setitem__(self, key: str, value: Any) -> None:
        self._record[key] = value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._record["seconds"] = round(monotonic() - self._since, 6)
        if error is not None:
            self._record.update(_told(error))
        self._trace._end(self._record)


class Recorder:
    """A `Host` that lets another do all, and writes down what it was."""

    def __init__(self, host: api.Host, trace: Trace) -> None:
        self._host, self._trace = host, trace

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        ok: Collection[int] = (0,),
        mounts: Sequence[tuple[api.MountPlan, str]] = (),
    ) -> api.CompletedRun:
        root = self._trace.root
        shown = [[described(plan, root), _written(path, root)] for plan, path in mounts]
        name = os.path.basename(argv[0])
        with self._trace.doing("run", name, argv=[_written(word, root) for word in argv], mounts=shown) as it:
            done = self._host.run(argv, timeout=timeout, ok=ok, mounts=mounts)
            it["status"] = done.returncode
            it["stdout"], it["stderr"] = _written(done.stdout, root), _written(done.stderr, root)
            return done

    def call(self, name: str, function: Callable[..., T], *arguments: object, changes: bool = True) -> T:
        root = self._trace.root
        given: Record = {"arguments": [_written(one, root) for one in arguments]}
        if not arguments and (known := _known_to(function, root)):
            given["known"] = known
        with self._trace.doing("call", name, changes=changes, **given) as it:
            result = self._host.call(name, function, *arguments, changes=changes)
            it["result"] = _written(result, root)
            return result

    def library(self, name: str, load: Callable[[], T]) -> T:
        return Watched(self, name, load())  # type: ignore[return-value]

    def mounted(self, plan: api.MountPlan) -> AbstractContextManager[api.MountedTree]:
        return _Mounted(self._host.mounted(plan), self._trace, plan)

    def sync(self, fd: int) -> None:
        with self._trace.doing("sync", "syncfs"):
            self._host.sync(fd)

    def step(self, name: str) -> None:
        self._host.step(name)

    def progress(self, text: str, done: int, total: int | None) -> None:
        self._host.progress(text, done, total)


class _Mounted:
    """The mount of a plan; only its beginning is timed."""

    def __init__(self, context: AbstractContextManager[api.MountedTree], trace: Trace, plan: api.MountPlan) -> None:
        self._context, self._trace, self._plan = context, trace, plan

    def __enter__(self) -> api.MountedTree:
        with self._trace.doing("mount", last(self._plan), steps=described(self._plan, self._trace.root)):
            return self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


# ---------------------------------------------------------------- playing back


class Replay:
    """A `Host` that does nothing and answers as the trace has it.

    A driver must ask for the same things in the same order, with the same arguments but for ids; else Mismatch, as also
    for what the trace can only show. root: where the store lies now. effects: by the name of a command, a call or a
    kind of mount (`mkfs.erofs`, `btrfs.create`, `erofs`), what stands in for its effect on files: called with argv,
    with the call's arguments, or with the plan and the path of an empty directory that is shown as the mount.
    """

    def __init__(self, path: str, root: str = "", effects: Mapping[str, Callable[..., object]] | None = None) -> None:
        self._root, self._effects = root, effects or {}
        records = list(read(path))
        self._below: dict[int, list[Record]] = {}
        parents = {record["n"]: record for record in records}
        for record in sorted(records, key=lambda record: int(record["n"])):
            if record["kind"] in ("run", "call", "mount", "sync"):
                above = record["within"]
                while above and parents[above]["kind"] != "call":
                    above = parents[above]["within"]
                self._below.setdefault(above, []).append(record)
        self._within = [0]

    def done(self) -> None:
        """Mismatch if something that was recorded has not been asked for."""
        left = [record for records in self._below.values() for record in records]
        if left:
            raise Mismatch(f"{len(left)} more things were done when it was recorded; the next: {_line(left[0])}")

    def _next(self, kind: str, name: str, **given: Any) -> Record:
        coming = self._below.get(self._within[-1], [])
        if not coming:
            raise Mismatch(f"nothing more was done when it was recorded, but now {kind} {name} {given}")
        record = coming[0]
        same = (record["kind"], record["name"]) == (kind, name)
        if not same or any(_shape(record[key]) != _shape(value) for key, value in given.items()):
            raise Mismatch(f"recorded was {_line(record)}, but now it is {kind} {name} {given}")
        coming.pop(0)
        return record

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        ok: Collection[int] = (0,),
        mounts: Sequence[tuple[api.MountPlan, str]] = (),
    ) -> api.CompletedRun:
        name = os.path.basename(argv[0])
        record = self._next("run", name, argv=[_written(word, self._root) for word in argv])
        self._effect(name, argv)
        self._raise(record)
        stdout, stderr = _read(record["stdout"], self._root), _read(record["stderr"], self._root)
        return api.CompletedRun(tuple(argv), record["status"], stdout, stderr)

    def call(self, name: str, function: Callable[..., T], *arguments: object, changes: bool = True) -> T:
        record = self._next("call", name, arguments=[_written(one, self._root) for one in arguments])
        if record["n"] in self._below:  # it was made of other calls: those are played back, it is done
            self._within.append(record["n"])
            try:
                return function(*arguments)
            finally:
                self._within.pop()
        self._effect(name, *arguments)
        self._raise(record)
        return _read(record["result"], self._root)  # type: ignore[no-any-return]

    def library(self, name: str, load: Callable[[], T]) -> T:
        return _Answers(self, name)  # type: ignore[return-value]

    def mounted(self, plan: api.MountPlan) -> AbstractContextManager[api.MountedTree]:
        record = self._next("mount", last(plan), steps=described(plan, self._root))
        return _Shown(self, record, plan)

    def sync(self, fd: int) -> None:
        self._raise(self._next("sync", "syncfs"))

    def step(self, name: str) -> None:
        """Nothing: steps are not recorded."""

    def progress(self, text: str, done: int, total: int | None) -> None:
        """Nothing: progress is not recorded."""

    def _effect(self, name: str, *words: object) -> None:
        if name in self._effects:
            self._effects[name](*words)

    def _raise(self, record: Record) -> None:
        if "error" not in record:
            return
        text = str(record["text"])
        if "errno" in record:
            raise OSError(record["errno"], text, *([record["path"]] if "path" in record else []))
        kind = getattr(errors, record["error"], ToolFailed)
        raise kind(text, remedy=record.get("remedy", ""))


class _Answers:
    """A library of which there is only the trace."""

    def __init__(self, host: Replay, name: str) -> None:
        self._of = host, name

    def __getattr__(self, attribute: str) -> Any:
        host, name = self._of
        coming = host._below.get(host._within[-1], [])
        whole = f"{name}.{attribute}"
        if coming and coming[0]["name"] == whole and not coming[0]["arguments"] and "known" in coming[0]:
            return host.call(whole, lambda: None, changes=False)  # it was no method

        def call(*arguments: object, **named: object) -> Any:
            given = (*arguments, named) if named else arguments
            return host.call(whole, lambda *_: None, *given, changes=False)

        return call


class _Shown:
    """An empty directory that stands for a mount."""

    def __init__(self, host: Replay, record: Record, plan: api.MountPlan) -> None:
        self._host, self._record, self._plan = host, record, plan

    def __enter__(self) -> api.MountedTree:
        import tempfile

        self._host._raise(self._record)
        self._folder = tempfile.TemporaryDirectory(prefix="replay-")
        self._host._effect(self._record["name"], self._plan, self._folder.name)
        self._fd = os.open(self._folder.name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return api.MountedTree(self._fd, f"/proc/self/fd/{self._fd}")

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        self._folder.cleanup()


def read(path: str) -> Iterator[Record]:
    """The records of a trace that are of something done. Mismatch for another format."""
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            record = json.loads(line)
            if record["kind"] == "begin" and record["format"] != FORMAT:
                raise Mismatch(f"{path} is a trace of format {record['format']}, not {FORMAT}")
            if "n" in record:
                yield record


def _line(record: Record) -> str:
    given = record.get("argv") or record.get("arguments") or record.get("steps") or ""
    return f"{record['kind']} {record['name']} {given}"
