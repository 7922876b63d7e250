"""The command `cowshed-conformance`: the suite on one driver, and its report in the form that is asked for."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile

import pytest

from cowshed_conformance import versions
from cowshed_conformance.plugin import BACKINGS, LEVELS
from cowshed_conformance.report import FILES, KINDS, Report

_HELP = """\
Holds a storage driver of Cowshed to the interface. Needs root: it mounts, in a mount namespace of its own, and leaves
the host as it found it. Exit status: 0 passed, 1 failed, 4 called wrongly, 2 interrupted."""


def main(words: list[str] | None = None) -> int:
    parser = _parser()
    said = parser.parse_args(words)
    if said.list:
        return _list()
    if not said.driver:
        parser.error("which driver? cowshed-conformance DRIVER")
    with tempfile.TemporaryDirectory(prefix="cowshed-conformance-") as folder:
        with _progress(aside=bool(said.report) and not said.output):
            status = int(pytest.main(_words(said, folder)))
    run = Report.of_this_run()
    if said.report and run.cases:
        if said.output:
            with open(said.output, "w", encoding="utf-8") as file:
                file.write(run.text(said.report))
        else:
            sys.stdout.write(run.text(said.report))
            sys.stdout.flush()
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cowshed-conformance", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("driver", nargs="?", metavar="DRIVER", help="an entry point's name, or module:object")
    add("--level", choices=LEVELS, default="full", help="core: what every driver must pass; full (default); faults: hundreds of random kills and changes more")  # fmt: skip # noqa: E501
    add("--driver-option", metavar="K=V", action="append", default=[], help="an option of the driver (repeatable)")
    add("--backing", choices=BACKINGS, help="what the stores lie on; default: the first that suits the driver")
    add("--suite-version", metavar="N", type=int, help=f"hold it to the cases of version N, 1 to {versions.VERSION}: newer ones run and are told, but fail nothing")  # fmt: skip # noqa: E501
    add("--report", choices=KINDS, help="print the report so; what goes on is told on stderr then")
    add("--output", metavar="FILE", help="write that report to a file")
    add("--report-dir", metavar="DIR", help=f"write all of {', '.join(FILES)} there")
    add("--only", metavar="CASES", help="numbers or letters of cases: L01,X,Q")
    add("--seed", metavar="N", type=int, help="repeat the random choices of an earlier run")
    add("--stand-in", metavar="FILE:OBJECT", help="what mounts in place of a file system that is not here")
    add("--fail-fast", action="store_true", help="stop at the first failure")
    add("--verbose", action="store_true", help="a line for each case")
    add("--list", action="store_true", help="list all cases: number, version that brought it, level, test")
    return parser


def _words(said: argparse.Namespace, folder: str) -> list[str]:
    """pytest's own command line. No configuration of the directory in which the command was typed has a part in it."""
    words = ["-c", os.devnull, "--rootdir", folder, "-p", "no:cacheprovider", "-ra", "--pyargs", "cowshed_conformance"]
    words += [
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
        "--import-mode=importlib",
        "-v" if said.verbose else "-q",
        "--driver",
        said.driver,
        "--level",
        said.level,
    ]
    words += [word for pair in said.driver_option for word in ("--driver-option", pair)]
    for name in ("backing", "suite_version", "stand_in", "report_dir"):
        value = getattr(said, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    if said.seed is not None:
        words += ["--conformance-seed", str(said.seed)]
    if said.only:
        # A digit follows a letter: pytest asks file names as well, and there is test_plain_user.py.
        named = [part.strip() for part in said.only.split(",")]
        starts = [f"test_{name}{n}" for name in named for n in (range(10) if name[-1].isalpha() else ("",))]
        words += ["-k", " or ".join(starts)]
    return [*words, "-x"] if said.fail_fast else words


class _progress:
    """`with _progress(aside=True):` what is written to standard output goes to standard error."""

    def __init__(self, *, aside: bool) -> None:
        self._aside = aside

    def __enter__(self) -> None:
        if self._aside:
            sys.stdout.flush()
            self._out = os.dup(1)
            os.dup2(2, 1)

    def __exit__(self, *_: object) -> None:
        if self._aside:
            sys.stdout.flush()
            os.dup2(self._out, 1)
            os.close(self._out)


def _list() -> int:
    from cowshed_conformance import suite

    rows = []
    for name in suite.__all__:
        if name.startswith("test_"):
            level = next(m.args[0] for m in getattr(suite, name).pytestmark if m.name == "conformance_level")
            rows.append((name[5:8], versions.since(name), level, name))
    for number, since, level, name in sorted(rows):
        print(f"{number} {since} {level:6} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
