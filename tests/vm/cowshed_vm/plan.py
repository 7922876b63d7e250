"""What `make test` runs in guests: what the machine's own kernel need not have.

Python takes ten to twenty times as long there, so a guest runs what depends on its kernel, not what has passed outside.
"""

from __future__ import annotations

from typing import NamedTuple

# Several pytest runs in one guest; the first status that is not 0 counts.
HEAD = """status=0
run() { .venv/bin/pytest -q "$@"; code=$?; [ $code = 0 ] || [ $status != 0 ] || status=$code; }
suite() { driver=$1; shift; run --pyargs cowshed_conformance --driver $driver --report-dir /results/$driver "$@"; }
"""


class Plan(NamedTuple):
    name: str
    kernel: str  # "": on this machine, once guests are built
    what: str  # for the line that says that it was not run
    script: str
    timeout: float = 1800  # seconds

    def command(self) -> str:
        return f"{HEAD}{self.script}exit $status\n"


def plans() -> list[Plan]:
    return [
        Plan("harness", "", "the tests that boot guests", "COWSHED_BOOT=6.12 run tests/vm/tests/test_boot.py\n"),
    ]
