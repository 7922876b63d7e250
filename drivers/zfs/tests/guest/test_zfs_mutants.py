"""The suite against faults that are typical of ZFS, in the guest: each is caught by the cases that are there for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest
HERE = Path(__file__).parent
RIGHT = ("P05_", "L01_a_base")  # what none of them gets wrong
# fault → the case that must fail, by the beginning of its name
MUTANTS = {
    "NamesOneOfSeveral": "D13_",
    "RenamedWithoutContent": "D14_",
    "CountsWhatIsShown": "Q12_usage_leaves_out",
    "LimitsWhatIsShown": "Q03_",
    "MountsTheDataset": "L03_",
    "KeepsTheOldSnapshot": "X01_what_is_written",
    "PurgesUnasked": "X10_leftovers",
    "StoresMeet": "S06_",
    "FoldsCase": "C22_names_of_every_kind",
    "NoAccessLists": "C16_",
}


@pytest.mark.parametrize("name", list(MUTANTS))
def test_a_fault_is_caught_by_its_cases(name, tmp_path):
    must = f"test_{MUTANTS[name]}"
    chosen = (must, *[f"test_{case}" for case in RIGHT])
    command = [
        "unshare", "--mount", "--propagation", "private", sys.executable, "-m", "pytest", "-q", "--pyargs",
        "cowshed_conformance", "--driver", f"broken_zfs:plugin_{name}", "--backing", "zpool",
        "--report-dir", str(tmp_path / "report"), "-k", " or ".join(chosen),
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(HERE), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = json.loads((tmp_path / "report/conformance.json").read_text())["cases"]
    assert all(any(case["test"].startswith(each) for case in found) for each in chosen)
    failed = {case["test"]: case["reason"] for case in found if case["outcome"] in ("failed", "error")}
    assert any(test.startswith(must) for test in failed), f"not caught by {must}"
    assert all(test.startswith(must) for test in failed), failed
