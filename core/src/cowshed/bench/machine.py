"""What the figures were taken on, and whether it was quiet enough for them."""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
import statistics
import subprocess
import time

from cowshed_linux import mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BUSY = 0.5  # load for each processor, above which results are marked
DRIFT = 0.1  # by which the baseline may change
_TOOLS = (
    ("mkfs.ext4", "-V"),
    ("mkfs.xfs", "-V"),
    ("mkfs.btrfs", "--version"),
    ("zfs", "version"),
    ("dmsetup", "version"),
)
_MIB = 1 << 20
_WRITES, _ROUNDS = 4, 5


def facts(place: str) -> dict[str, Any]:
    system = os.uname()
    return {
        "kernel": f"{system.sysname} {system.release} {system.machine}", "build": system.version,
        "processor": _processor(), "processors": os.cpu_count(), "governor": _governor(),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "memory_free": _available(),
        "python": platform.python_version(), "virtual": _virtual(), "on_battery": on_battery(),
        "tools": _tools(), "place": {"path": place, **_disk(place)},
    }  # fmt: skip


def load() -> float:
    """Of one minute, for each processor."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def on_battery() -> bool:
    """Whether a power supply says so (Documentation/ABI/testing/sysfs-class-power)."""
    folder = "/sys/class/power_supply"
    names = os.listdir(folder) if os.path.isdir(folder) else []
    states = [_read(f"{folder}/{name}/online") for name in names if _read(f"{folder}/{name}/type") == "Mains"]
    return bool(states) and "1" not in states


def baseline(folder: str) -> dict[str, float]:
    """ms of a fixed piece of work of the processor, and of 4 MiB written and synced: what drifts is the machine."""
    data = os.urandom(_MIB)
    processor, disk = [], []
    path = f"{folder}/baseline"
    for _ in range(_ROUNDS):
        began = time.process_time()
        sum(range(400_000))
        processor.append((time.process_time() - began) * 1000)
        began = time.perf_counter()
        with open(path, "wb", buffering=0) as file:
            for _ in range(_WRITES):
                file.write(data)
            os.fsync(file.fileno())
        disk.append((time.perf_counter() - began) * 1000)
    os.unlink(path)
    return {"processor": statistics.median(processor), "disk": statistics.median(disk)}


def drifts(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """What has changed by more than a tenth, in words."""
    found = []
    for key, title in (("processor", "the processor"), ("disk", "the disk")):
        change = after[key] / before[key] - 1
        if abs(change) > DRIFT:
            found.append(f"{title} became {'slower' if change > 0 else 'faster'} by {abs(change):.0%} meanwhile")
    return found


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _processor() -> str:
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found.group(1) if found else platform.machine()


def _governor() -> str:
    return _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown"


def _available() -> int:
    found = re.search(r"^MemAvailable:\s*(\d+)", _read("/proc/meminfo"), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def _virtual() -> str:
    return _read("/sys/class/dmi/id/product_name") or _read("/sys/hypervisor/type") or "unknown"


def _tools() -> dict[str, str]:
    found = {}
    for words in _TOOLS:
        if shutil.which(words[0]) is not None:
            done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            found[words[0]] = (done.stdout + done.stderr).strip().partition("\n")[0]
    return found


def _disk(path: str) -> dict[str, Any]:
    """The file system of a path, and the disk below it (Documentation/ABI/stable/sysfs-block)."""
    status = os.stat(path)
    if stat.S_ISBLK(status.st_mode):
        return {"source": path, **_hardware(f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")}
    found = mounts.holding(path)
    if found is None:
        return _hardware("")
    told = {"file_system": found.fstype, "source": found.source, "options": found.options}
    return {**told, **_hardware(found.device)}


def _hardware(number: str) -> dict[str, Any]:
    """Of the disk MAJOR:MINOR, or of the one that it is a part of."""
    found: dict[str, Any] = {}
    device = os.path.realpath(f"/sys/dev/block/{number}")
    if os.path.exists(f"{device}/partition"):
        device = os.path.dirname(device)
    if os.path.exists(f"{device}/queue"):
        found["model"] = _read(f"{device}/device/model") or os.path.basename(device)
        found["rotational"] = _read(f"{device}/queue/rotational") == "1"
        found["write_cache"] = _read(f"{device}/queue/write_cache")
        found["scheduler"] = _read(f"{device}/queue/scheduler")
    return found
