"""Whether and how well copying serves at a place: by making there one of each kind of file that images hold."""

from __future__ import annotations

import os

from cowshed.storage.api import ProbeReport, Reason, Verdict
from cowshed.storage.kit.places import IN_MEMORY, file_system_name, nearest_directory
from cowshed.storage.kit.trees import remove_tree
from cowshed_driver_copy.driver import capabilities
from cowshed_linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed.storage.api import Host, Options

    Facts = dict[str, str | int | bool]


def probe(root: str, options: Options, host: Host) -> ProbeReport:
    """POOR at best: a full copy per layer fills disks; the facts say whether extents are shared."""
    place = nearest_directory(root)
    facts: Facts = {"place": place}
    doing = "look at it"
    try:
        facts["file_system"] = file_system_name(place)
        trial = f"{place}/.cowshed-probe-{os.urandom(6).hex()}"
        doing = "make a directory"
        os.mkdir(trial, 0o700)
        try:
            for kind, make in _kinds(trial).items():
                doing = kind
                make()
            doing = "share data"
            facts["reflink"] = shares = _shares_extents(trial)
        finally:
            remove_tree(trial)
    except OSError as error:
        text = f"{place}: cannot {doing} there: {error.strerror or error}"
        remedy = "put the store (--root) on a local Linux file system that can be written"
        return ProbeReport(None, facts, (Reason("copy.not-usable", text, remedy, Verdict.UNUSABLE),))
    cost = "metadata only, data is shared" if shares else "all of the data, for each layer and container"
    text = f"every layer is a copy of the one below: it costs {cost}"
    durable = facts["file_system"] not in IN_MEMORY
    reason = Reason("copy.copies", text, "use overlay", Verdict.POOR)
    return ProbeReport(capabilities(durable=durable), facts, (reason,))


def _kinds(trial: str) -> dict[str, Callable[[], object]]:
    """What must work, by the name that a refusal gives it."""
    file = f"{trial}/file"
    return {
        "make a file": lambda: os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)),
        "make a symbolic link": lambda: os.symlink("file", f"{trial}/symlink"),
        "make a hard link": lambda: os.link(file, f"{trial}/link"),
        "make a fifo": lambda: os.mkfifo(f"{trial}/fifo"),
        "keep a mode": lambda: _mode(file),
        "keep extended attributes": lambda: os.setxattr(file, "user.cowshed", b"1"),
    }


def _mode(file: str) -> None:
    os.chmod(file, 0o4711)
    if os.stat(file).st_mode & 0o7777 != 0o4711:
        raise OSError("it came back changed")


def _shares_extents(trial: str) -> bool:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    source = os.open(f"{trial}/source", flags, 0o600)
    try:
        os.write(source, b"x" * 4096)
        target = os.open(f"{trial}/target", flags, 0o600)
        try:
            files.reflink(source, target)
        except OSError:
            return False
        finally:
            os.close(target)
        return True
    finally:
        os.close(source)
