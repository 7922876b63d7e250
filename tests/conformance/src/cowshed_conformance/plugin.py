"""The pytest plug-in: options, choice of cases, report.

pytest loads this module in every run on a machine that has the suite installed. So it imports nothing of the suite, and
each hook returns at once unless a case has been collected.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cowshed_conformance import report

LEVELS = ("core", "full", "faults")
BACKINGS = ("dir", "tmpfs", "ext4", "ext4-quota", "xfs", "xfs-quota", "btrfs", "zpool")
pytest.register_assert_rewrite("cowshed_conformance.cases")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cowshed_conformance", "conformance suite of Cowshed storage drivers")
    group.addoption("--driver", metavar="NAME", help="driver to test: entry-point name, or module:object")
    group.addoption(
        "--driver-option", metavar="K=V", action="append", default=[], help="option of that driver (repeatable)"
    )
    group.addoption(
        "--backing",
        default=None,
        choices=BACKINGS,
        help="what the stores lie on; default: the first that suits the driver, beginning with the temporary directory",
    )
    group.addoption(
        "--stand-in", metavar="FILE:OBJECT", default=None, help="what mounts in place of a file system that is not here"
    )
    group.addoption("--level", default="full", choices=LEVELS, help="which cases: core, full (default), faults")
    group.addoption(
        "--suite-version",
        metavar="N",
        type=int,
        default=None,
        help="hold the driver to the cases of this version of the suite: newer ones run and are told, but fail nothing",
    )
    group.addoption("--conformance-seed", metavar="N", type=int, default=None, help="repeat a run's random choices")
    group.addoption(
        "--shuffle", metavar="N", type=int, default=None, help="run the cases in the order that this number gives"
    )
    group.addoption(
        "--set-clock", action="store_true", help="this machine is for the run alone: case X15 may set its clock back"
    )
    group.addoption(
        "--report-dir", metavar="DIR", default=None, help="write the report there, as JSON, Markdown, page and badge"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "conformance_level(name): core, full or faults (cowshed_conformance)")
    config.addinivalue_line("markers", "conformance_budget(seconds): time that a case may take (cowshed_conformance)")
    config.addinivalue_line("markers", "conformance_last: runs after all others (cowshed_conformance)")
    name = config.getoption("--driver")
    if name:
        from cowshed_conformance.target import resolve, words

        resolve(name, words(config.getoption("--driver-option")), seed=0, level="")  # a mistake is told before all else
        if config.getoption("--stand-in"):
            from cowshed_conformance import standins

            standins.use(config.getoption("--stand-in"))
        config.pluginmanager.import_plugin("cowshed_conformance.fixtures")
    elif any(word.partition(".")[0].partition(":")[0] == "cowshed_conformance" for word in config.args):
        raise pytest.UsageError("which driver? pytest --pyargs cowshed_conformance --driver NAME")


def _report() -> type[report.Report] | None:
    module = sys.modules.get("cowshed_conformance.report")
    return module.Report if module is not None else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With a stand-in, say so in the name of each case."""
    module = sys.modules.get("cowshed_conformance.standins")
    if module is not None and module.used is not None and "target" in metafunc.fixturenames:
        metafunc.parametrize("target", [None], ids=[module.used.name], indirect=True, scope="module")


@pytest.hookimpl(tryfirst=True)  # before -k takes some away
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _report() is None:
        return
    _report_modules(items)
    wanted = LEVELS[: LEVELS.index(config.getoption("--level")) + 1]
    gone = []
    for item in items:
        mark = item.get_closest_marker("conformance_level")
        if mark is not None and mark.args[0] not in wanted:
            gone.append(item)
    if gone:
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item not in gone]
    _versions(config, items)
    order = config.getoption("--shuffle")
    if order is not None:
        import random

        random.Random(order).shuffle(items)
    module = sys.modules.get("cowshed_conformance.standins")
    if module is not None:
        module.mark(items)
    items.sort(key=lambda item: item.get_closest_marker("conformance_last") is not None)


def _report_modules(items: list[pytest.Item]) -> None:
    run = _report()
    assert run is not None
    run.of_this_run().modules.update(item.function.__module__ for item in items if isinstance(item, pytest.Function))


def _versions(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note which cases there are, and let those that are newer than the version that is held to fail nothing."""
    from cowshed_conformance import versions

    run = _report()
    assert run is not None
    here = run.of_this_run()
    for item in items:
        mark = item.get_closest_marker("conformance_level")
        if mark is None or not isinstance(item, pytest.Function):
            continue
        pin = config.getoption("--suite-version") or getattr(item.module, "SUITE_VERSION", None)
        if pin is not None and not 1 <= pin <= versions.VERSION:
            raise pytest.UsageError(
                f"there is no version {pin} of the suite: this one has 1 to {versions.VERSION}; install a newer one"
            )
        since = versions.since(item.originalname)
        counted = pin is None or since <= pin
        here.pinned = pin if pin is not None else here.pinned
        here.know(item, mark.args[0], since=since, counted=counted)
        if not counted:
            item.add_marker(pytest.mark.xfail(reason=f"newer than version {pin} of the suite", strict=False))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    kind = _report()
    if kind is not None:
        kind.of_this_run().note(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A case that is skipped says why in a way that programs can read, or the run has failed (H02)."""
    kind = _report()
    if kind is not None and kind.of_this_run().unexplained() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    kind = _report()
    if kind is not None:
        kind.of_this_run().finish(terminalreporter, config.getoption("--report-dir"))
