"""The suite's cases of activation, and what else depends on it, on a driver that has it wherever there are loop devices
(cowshed_testing/loops.py): the engine's half of what devicemapper needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cowshed_testing import loops

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CASES = "U0 or L01_ or L13_ or M02_ or M03_ or M06_ or J02_ or J03_ or N12_ or R05_ or I01_ or H01_"


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="the suite mounts file systems"),
]


def suite(folder, driver, cases):
    words = ["--pyargs", "cowshed_conformance", "--driver", driver, "-k", cases]
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "pytest", "-q", "-rs", *words],
        env={**os.environ, "PYTHONPATH": f"{ROOT}/tests/support:{HERE}", "TMPDIR": str(folder)},
        cwd=folder, capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def test_layers_on_devices_that_only_their_mounts_hold(tmp_path):
    done = suite(tmp_path, "cowshed_testing.loops:plugin", CASES)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "activation is not claimed" not in done.stdout


def test_devices_that_stay_are_caught(tmp_path):
    try:
        done = suite(tmp_path, "stays_active:plugin", "U05")
    finally:
        for device, image in loops.devices():
            if image.startswith(f"{tmp_path}/"):
                loops.let_go(device)
    assert done.returncode == 1, done.stdout
    assert "the layer stays active after" in done.stdout
