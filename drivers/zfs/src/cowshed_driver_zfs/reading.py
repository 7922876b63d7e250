"""Asking ZFS: by channel programs, which is quickest and sees one moment; of a pool that was imported read-only, on
which the kernel runs none, by the `zfs` program."""

from __future__ import annotations

import errno

from cowshed.storage.errors import ToolFailed
from cowshed_driver_zfs import names, programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.storage.api import Host
    from cowshed_driver_zfs.binding import Zfs

_TIMEOUT = 60.0


class Reader:
    """read_only: the pool has turned out to be."""

    def __init__(self, zfs: Zfs, dataset: str, host: Host) -> None:
        self._zfs, self._pool, self._host = zfs, names.pool(dataset), host
        self.read_only = False

    def properties(self, name: str, *wanted: str) -> dict[str, str] | None:
        """Properties of a dataset or a snapshot; None if it is not there."""
        answer = self._program(programs.PROPERTIES, {"name": name, "properties": " ".join(wanted)})
        if answer is not None:
            return programs.properties(answer, wanted)
        if not self._zfs.exists(name):
            return None
        argv = ("zfs", "get", "-Hpo", "property,value", ",".join(wanted), name)
        lines = self._host.run(argv, timeout=_TIMEOUT).stdout.decode("utf-8", "surrogateescape").splitlines()
        found = dict(line.split("\t", 1) for line in lines)
        if missing := {*wanted} - {*found}:
            raise ToolFailed(f"zfs get of {name} did not print {', '.join(sorted(missing))}")
        return {each: found[each] for each in wanted}

    def objects(self, store: str) -> list[programs.Object]:
        """The datasets of a store, sorted by name, with their snapshots."""
        answer = self._program(programs.OBJECTS, {"store": store})
        if answer is not None:
            return programs.objects(answer, store)
        columns = "name,cowshed:number,cowshed:parent,clones"
        argv = ("zfs", "list", "-Hp", "-r", "-d", "2", "-t", "filesystem,snapshot", "-o", columns, store)
        said = self._host.run(argv, timeout=_TIMEOUT).stdout
        return programs.listed(said.decode("utf-8", "surrogateescape"), store)

    def _program(self, text: str, arguments: dict[str, str]) -> str | None:
        if self.read_only:
            return None
        try:
            return self._zfs.program(self._pool, text, arguments)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        self.read_only = True
        return None
