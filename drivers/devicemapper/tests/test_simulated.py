"""The suite on a simulation of device-mapper: the driver's own logic, on any machine; and the suite against drivers on
it with one fault each. The real thing is tested in a guest."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cowshed_conformance import archive, commandline

HERE = Path(__file__).parent
CASES = "S01 S05 S06 L01 L02 L07 L08 L09 R04 X12 X13 D02 D13 D24"
# fault → cases that must fail
FAULTS = {
    "plugin_ForgetsDevices": "R04",
    "plugin_TakesOver": "X12",
    "plugin_WritableWhenCommitted": "L03",
}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the suite mounts file systems")


@pytest.fixture
def run():
    """One run of the suite in a process and a mount namespace of its own; the report's cases that failed."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # every mount is synced at its end
    folder = tempfile.TemporaryDirectory(prefix="devicemapper-", dir=memory)
    tmp_path = Path(folder.name)

    def run_on(driver, cases):
        state = tmp_path / "simulated"
        state.mkdir()
        env = {**os.environ, "PYTHONPATH": str(HERE), "TMPDIR": str(tmp_path), "COWSHED_SIMULATION": str(state)}
        words = " or ".join(f"test_{case}_" for case in cases.split())
        command = [
            "unshare", "--mount", "--propagation", "private", sys.executable, "-m", "pytest", "-q", "-p",
            "no:cacheprovider", "--pyargs", "cowshed_conformance", "--driver", driver, "--driver-option", "quota=off",
            "--backing", "dir", "--level",
            "core", "--report-dir", str(tmp_path / "report"), "-k", words,
        ]  # fmt: skip
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=280)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        report = json.loads((tmp_path / "report" / "conformance.json").read_text())
        assert {case["case"] for case in report["cases"]} >= set(cases.split())
        return {x["case"]: x["reason"] for x in report["cases"] if x["outcome"] in ("failed", "error")}

    yield run_on
    _free_loops(str(tmp_path))
    folder.cleanup()


def _free_loops(folder):
    """Of processes that were killed between activation and mount."""
    for name in os.listdir("/sys/block"):
        try:
            with open(f"/sys/block/{name}/loop/backing_file") as file:
                image = file.read().strip()
        except OSError:
            continue
        if image.startswith(folder):
            subprocess.run(["losetup", "-d", f"/dev/{name}"], check=False)


# The engine's commands on the simulation, its thin devices on a file system with little space.
COMMANDS = """
mount -t tmpfs -o size=24m tmpfs $COWSHED_SIMULATION || exit 1
"$@" load -q < small >&2 && "$@" create --name one test/small:1 /bin/true >&2 || exit 1
"$@" cp - one:/ < big.tar; echo "cp $?"
"$@" rm one >&2 && "$@" load -q < big; echo "load $?"
"$@" images -q | wc -l
"$@" load -q < small >&2 && "$@" system check --deep
"""
MAIN = """
import cowshed_driver_devicemapper, simulated
cowshed_driver_devicemapper.plugin = simulated.plugin
from cowshed.cli.main import main
main()
"""


def test_what_a_full_pool_has_no_place_for_is_not_said_to_be_stored(tmp_path):
    """It is still in memory when the command has written it."""
    big = archive.pack([archive.member(f"f{n}", os.urandom(1 << 20)) for n in range(32)])
    small = archive.pack([archive.member("bin/true", b"#!", mode=0o755)])
    (tmp_path / "simulated").mkdir()
    (tmp_path / "big.tar").write_bytes(big)
    for name, layer in (("small", small), ("big", big)):
        (tmp_path / name).write_bytes(commandline.image(f"test/{name}:1", layer))
    env = {key: value for key, value in os.environ.items() if not key.startswith("COWSHED_")}
    env |= {"PYTHONPATH": str(HERE), "COWSHED_SIMULATION": str(tmp_path / "simulated")}
    words = ["--root", f"{tmp_path}/store", "--run-root", f"{tmp_path}/run", "--config", os.devnull]
    words += ["--driver", "devicemapper"]
    for option in ("quota=off", "reserve=0", "loop_size=64M"):
        words += ["--driver-option", option]
    shell = ["unshare", "--mount", "--propagation", "private", "sh", "-c", COMMANDS, "-", sys.executable, "-c", MAIN]
    try:
        done = subprocess.run([*shell, *words], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    finally:
        _free_loops(str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == ["cp 125", "load 125", "1", "clean"]
    assert done.stderr.count("what was written to layer") == 2


def test_the_driver_passes_on_a_simulated_pool(run):
    assert run("simulated:plugin", CASES) == {}


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_fault_is_caught_on_a_simulated_pool(run, name):
    failed = run(f"faulty:{name}", FAULTS[name])
    assert set(FAULTS[name].split()) <= set(failed)
