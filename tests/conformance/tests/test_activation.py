"""The suite's cases of activation, and what else depends on it, on a driver that has it wherever there are loop devices
(cowshed_testing/loops.py): the engine's half of what devicemapper needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CASES = "U0 or L01_ or L13_ or M02_ or M03_ or M06_ or J02_ or J03_ or N12_ or R05_ or I01_ or H01_"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="the suite mounts file systems")
def test_layers_on_devices_that_only_their_mounts_hold(tmp_path):
    words = ["--pyargs", "cowshed_conformance", "--driver", "cowshed_testing.loops:plugin", "-k", CASES]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "pytest", "-q", "-rs", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests/support"), "TMPDIR": str(tmp_path)},
        cwd=tmp_path, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "activation is not claimed" not in done.stdout
