"""system df, system prune, info, version, help, completion."""

from __future__ import annotations

from cowshed.errors import BadUsage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.cli.parser import Values
    from cowshed.engine import Engine


def df(engine: Engine, said: Values) -> int:
    from cowshed.cli import output
    from cowshed.container.usage import usage

    rows = []
    for used in usage(engine):
        share = f" ({100 * used.reclaimable // used.size}%)" if used.size else ""
        rows.append(
            {
                "Type": used.kind, "TotalCount": used.total, "Active": used.active, "Size": output.size(used.size),
                "Reclaimable": output.size(used.reclaimable) + share,
            }
        )  # fmt: skip
    output.listing(rows, ("Type", "TotalCount", "Active", "Size", "Reclaimable"), said.format, what="system df",
                   headings={"TOTALCOUNT": "TOTAL"})  # fmt: skip
    return 0


def prune(engine: Engine, said: Values) -> int:
    import os

    from cowshed.cli import output, pruning
    from cowshed.container.prune import prune as prune_

    if not said.force:
        which = "images that no container uses" if said.all else "images without a name"
        more = ", anonymous volumes that no container uses" if said.volumes else ""
        if not pruning.agreed(f"all containers that do not run, {which}{more}"):
            return 0
    engine.freeing = True
    root = engine.store.root
    before = os.statvfs(root)
    done = prune_(engine, all_images=bool(said.all), with_volumes=bool(said.volumes))
    after = os.statvfs(root)
    deleted = [f"untagged: {name}" for each in done.images for name in each.untagged]
    deleted += [f"deleted: {each.deleted}" for each in done.images if each.deleted]
    for title, names in (("Containers", done.containers), ("Volumes", done.volumes), ("Images", deleted)):
        if names:
            print(f"Deleted {title}:", *names, "", sep="\n")
    freed = after.f_bavail * after.f_frsize - before.f_bavail * before.f_frsize
    print(f"Total reclaimed space: {output.size(max(freed, 0))}")
    return 0


def completion(engine: Engine, said: Values) -> int:
    from cowshed.cli import completion as scripts

    shell = said["operands"][0]
    if shell not in scripts.SHELLS:
        raise BadUsage(f"there is no completion for {shell}", remedy=f"there is for {', '.join(scripts.SHELLS)}")
    print(scripts.SHELLS[shell], end="")
    return 0


def complete(engine: Engine, said: Values) -> int:
    """What the completion scripts ask: the words up to the cursor, the last one unfinished."""
    from cowshed.cli import completion as scripts

    return scripts.complete(said["operands"])


def help_(engine: Engine, said: Values) -> int:
    from cowshed.cli import help as pages

    pages.show(said["operands"])
    return 0


def _machine() -> str:
    import os

    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def version(engine: Engine, said: Values) -> int:
    import os
    import sys

    from cowshed.cli import output
    from cowshed.cli.main import VERSION
    from cowshed.storage.api import API_VERSION

    if not said.format:
        print(f"cowshed {VERSION}")
        return 0
    us = {
        "Version": VERSION, "DriverApiVersion": ".".join(map(str, API_VERSION)), "Os": "linux", "Arch": _machine(),
        "KernelVersion": os.uname().release, "PythonVersion": ".".join(map(str, sys.version_info[:3])),
    }  # fmt: skip
    # There is no daemon: client and server are one.
    output.one({**us, "Client": us, "Server": us}, said.format)
    return 0


def info(engine: Engine, said: Values) -> int:
    from cowshed.cli import output

    told = _info(engine)
    if said.format:
        output.one(told, said.format)
        return 0
    for title, key in _SHOWN:
        value = told[key]
        if isinstance(value, list):
            value = ", ".join(value) or "none"
        elif key == "MemTotal":
            value = f"{value / 2**30:.4g}GiB"
        print(f"{title}: {value}")
    for warning in told["Warnings"]:
        print(f"WARNING: {warning}")
    return 0


_SHOWN = (
    ("Containers", "Containers"), (" Running", "ContainersRunning"), (" Stopped", "ContainersStopped"),
    ("Images", "Images"), ("Server Version", "ServerVersion"), ("Storage Driver", "Driver"),
    (" Drivers of this store", "DriversInUse"), ("Durability", "Durability"), ("Cgroup Version", "CgroupVersion"),
    ("Default Runtime", "DefaultRuntime"), ("Kernel Version", "KernelVersion"),
    ("Operating System", "OperatingSystem"), ("OSType", "OSType"), ("Architecture", "Architecture"), ("CPUs", "NCPU"),
    ("Total Memory", "MemTotal"), ("Name", "Name"), ("ID", "ID"), ("Root Dir", "RootDir"),
    ("Run Root Dir", "RunRootDir"), ("Configuration Files", "ConfigurationFiles"),
)  # fmt: skip


def _info(engine: Engine) -> dict[str, Any]:
    import os

    from cowshed.cli.main import VERSION
    from cowshed.container import state
    from cowshed.errors import NotFound
    from cowshed.state import containers, drivers

    store, settings, host = engine.reader, engine.settings, os.uname()
    states = [state.now(engine, row).state for row in containers.list_all(store)]
    running = states.count("running")
    warnings = []
    try:
        driver = engine.driver_name()
    except NotFound as error:
        driver = ""
        warnings.append(f"{error}: {error.remedy}")
    return {
        "ID": store.id, "Name": host.nodename, "ServerVersion": VERSION,
        "Containers": len(states), "ContainersRunning": running, "ContainersPaused": 0,
        "ContainersStopped": len(states) - running, "Images": store.query("select count(*) from images")[0][0],
        "Driver": driver, "DriversInUse": drivers.names(store), "Durability": settings.durability,
        "CgroupDriver": "cgroupfs", "CgroupVersion": _cgroup_version(), "DefaultRuntime": settings.runtime,
        "KernelVersion": host.release, "OperatingSystem": _distribution(), "OSType": "linux",
        "Architecture": host.machine,
        "NCPU": os.cpu_count(), "MemTotal": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "RootDir": settings.root, "DockerRootDir": settings.root, "RunRootDir": settings.run_root,
        "ConfigurationFiles": list(settings.files), "Warnings": warnings,
    }  # fmt: skip


def _cgroup_version() -> str:
    """As docker tells it: that of the hierarchies which have the controllers."""
    from cowshed_runtime.cgroup.layout import Layout

    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        layout = Layout(file.read())
    return "1" if layout.v1 else "2"


def _distribution() -> str:
    """os-release(5)."""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            with open(path, encoding="utf-8") as file:
                for line in file:
                    if line.startswith("PRETTY_NAME="):
                        return line.partition("=")[2].strip().strip("\"'")
        except FileNotFoundError:
            continue
    return "Linux"
