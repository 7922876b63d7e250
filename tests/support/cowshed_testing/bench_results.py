"""Results as a run would make them, from figures that a test chooses."""

from cowshed.bench.result import Result, Row, ScenarioResult
from cowshed.bench.samples import Sample, figure


def around(middle, count=9):
    return [Sample(middle * (1 + (n - count // 2) / 100), middle / 2, 4096 * n) for n in range(count)]


def row(key, values, *, title="", unit="ms", versus="", use=("builds",)):
    figures = {name: figure(found if isinstance(found, list) else around(found)) for name, found in values.items()}
    return Row(key, title or key.replace("/", ": "), unit, versus, tuple(use), figures)


def scenario(name, *rows, **more):
    words = {"control": False, "sizes": {"files": 10}, "marks": [], "failures": {}, **more}
    return ScenarioResult(
        name, ("W1",), f"Scenario {name}", "What it does & why.", words["control"], words["sizes"], 1.0, list(rows),
        words["marks"], words["failures"],
    )  # fmt: skip


def result(*scenarios, names=("overlay@ext4", "btrfs@btrfs", "copy@ext4"), marks=(), poor=()):
    machine = {
        "kernel": "Linux 6.18.0 x86_64", "build": "#1", "processor": "Tested <1>", "processors": 2,
        "governor": "performance", "memory": 8 << 30, "memory_free": 4 << 30, "python": "3.11.2", "virtual": "none",
        "on_battery": False, "tools": {"mkfs.ext4": "mke2fs 1.47"},
        "place": {"path": "/var/lib", "file_system": "ext4", "model": "disk"},
    }  # fmt: skip
    subjects = [
        {
            "name": name, "driver": name.partition("@")[0], "kind": name.partition("@")[2], "options": {},
            "verdict": "poor" if name in poor else "good", "reason": "",
        }
        for name in names
    ]  # fmt: skip
    base = {"processor": 1.0, "disk": 10.0}
    return Result(
        "2026-11-28T12:00:00+0000", 60.0, "quick", 1, 1 << 30, "0.1.0", machine, subjects, ["zfs cannot be had"],
        list(marks), {"before": base, "after": base}, list(scenarios),
    )  # fmt: skip
