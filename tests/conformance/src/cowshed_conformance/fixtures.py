"""The fixtures that cases use, and the care around each case: time budget, nothing left behind."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType

import pytest

from cowshed.storage import api
from cowshed_conformance import backing as places
from cowshed_conformance import hoststate, marks, standins
from cowshed_conformance.backing import Backing
from cowshed_conformance.harness import Store, SuiteHost
from cowshed_conformance.report import Report
from cowshed_conformance.target import Target, resolve, words

BUDGET = 20.0  # seconds for a case
before: hoststate.HostState | None = None  # when the first case began


@pytest.fixture(scope="module")
def target(request: pytest.FixtureRequest) -> Target:
    """The driver under test: --driver, or DRIVER and DRIVER_OPTIONS of the module that imports the suite."""
    config, module = request.config, request.module
    name = getattr(module, "DRIVER", None) or config.getoption("--driver")
    if not name:
        raise pytest.UsageError("which driver? --driver NAME, or DRIVER = … in the module")
    given = dict(getattr(module, "DRIVER_OPTIONS", {}))
    given.update(words(config.getoption("--driver-option")))
    seed = config.getoption("--conformance-seed")
    if seed is None:
        seed = Report.of_this_run().facts.get("seed") or random.SystemRandom().randrange(1 << 32)
    found = resolve(name, given, seed=seed, level=config.getoption("--level"))
    return replace(found, plugin=standins.under(found.plugin))


@pytest.fixture(scope="module")
def backing(request: pytest.FixtureRequest, target: Target) -> Iterator[Backing]:
    """Where stores of this module lie."""
    if os.geteuid() != 0:
        pytest.skip("[privilege] the suite mounts file systems: run it as root")
    global before
    if before is None:
        places.enter_private_namespace()
        before = hoststate.HostState.now()
    named = request.config.getoption("--backing") or getattr(request.module, "BACKING", "")
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        hoststate.ours.append(folder)
        with contextlib.ExitStack() as until:
            made = _named(named, folder, target, until) if named else _first_usable(folder, target, until)
            _facts(target, made)
            yield made


def _named(kind: str, folder: str, target: Target, until: contextlib.ExitStack) -> Backing:
    if kind == "dir":
        os.mkdir(f"{folder}/at")
        made = Backing(kind, f"{folder}/at", folder, target)
        until.callback(made.clear)
        return made
    system = until.enter_context(places.file_system(kind, f"{folder}/{kind}", 1 << 30))
    target.places[system.path] = system.options
    return Backing(kind, system.path, folder, target)


def _first_usable(folder: str, target: Target, until: contextlib.ExitStack) -> Backing:
    """The first kind of backing that the driver's own probe does not call unusable: some need a file system, or a
    pool, of their own."""
    why = ""
    for kind in places.KINDS:
        with contextlib.ExitStack() as tried:
            try:
                made = _named(kind, folder, target, tried)
            except pytest.skip.Exception as missing:
                why = str(missing)
                continue
            report = target.plugin.probe(made.path, target.at(made.path), SuiteHost())
            if report.verdict is not api.Verdict.UNUSABLE:
                until.enter_context(tried.pop_all())
                return made
            why = next((f"{kind}: {r.text}" for r in report.reasons if r.verdict is report.verdict), kind)
    return marks.skip("file-system", f"no kind of backing suits the driver; the last, {why}")


def _facts(target: Target, made: Backing) -> None:
    from cowshed_linux import process

    plugin, facts = target.plugin, Report.of_this_run().facts
    if facts:
        return
    system = os.uname()
    report = plugin.probe(made.path, target.at(made.path), SuiteHost())
    facts.update(
        driver=plugin.name,
        mounted_by=f"{standins.used.name}, a stand-in" if standins.used is not None else "the kernel",
        api=".".join(str(n) for n in plugin.api),
        options=dict(target.options),
        verdict=report.verdict.value,
        probe=dict(report.facts),
        backing=places.fs_type(made.path),
        kernel=f"{system.sysname} {system.release} {system.machine}",
        python=".".join(str(n) for n in sys.version_info[:3]),
        suite=importlib.metadata.version("cowshed-conformance"),
        distribution=_distribution(target),
        tools=_tools(),
        level=target.level,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seed=target.seed,
        boot=process.boot_id(),
    )


def _distribution(target: Target) -> str:
    for point in importlib.metadata.entry_points(group="cowshed.storage_drivers", name=target.name):
        if point.dist is not None:
            return f"{point.dist.name} {point.dist.version}"
    return f"not installed: {target.name}"


def _tools() -> dict[str, str]:
    """What the programs that the suite runs say of their version."""
    return {
        name: _version(name, word)
        for name, word in (("mkfs.ext4", "-V"), ("mkfs.xfs", "-V"), ("mkfs.btrfs", "--version"), ("mount", "--version"))
    }


def _version(name: str, word: str) -> str:
    import subprocess

    try:
        done = subprocess.run([name, word], capture_output=True, text=True, timeout=10)
    except OSError:
        return "missing"
    return (done.stdout + done.stderr).strip().partition("\n")[0]


@pytest.fixture
def store(target: Target, backing: Backing) -> Iterator[Store]:
    """A new store, opened."""
    made = Store(target, backing.place())
    try:
        yield made
    finally:
        made.discard()


@pytest.fixture
def light(target: Target, backing: Backing) -> Iterator[Store]:
    """A new store for hundreds of calls: on a file system of its own, in memory unless --backing says otherwise."""
    with backing.own(256 << 20) as system:
        made = Store(target, f"{system.path}/store")
        try:
            yield made
        finally:
            made.discard()


@pytest.fixture
def chance(target: Target, request: pytest.FixtureRequest) -> random.Random:
    """Random choices that the run's seed repeats."""
    return random.Random(f"{target.seed} {request.node.name}")


@pytest.fixture(autouse=True)
def within_budget(request: pytest.FixtureRequest) -> Iterator[None]:
    """A case that hangs fails, and its traceback shows where."""
    mark = request.node.get_closest_marker("conformance_budget")
    if request.node.get_closest_marker("conformance_level") is None:
        yield
        return
    seconds = (float(mark.args[0]) if mark is not None else BUDGET) * marks.SLOWDOWN

    def late(_: int, __: FrameType | None) -> None:
        pytest.fail(f"the case took longer than its {seconds:g} s")

    old = signal.signal(signal.SIGALRM, late)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, old)
