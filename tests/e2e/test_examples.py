"""The drivers of examples/, made with what every author has: installed as users would, and held to the suite."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from cowshed_testing import plugins

TOP = Path(__file__).parents[2]
LEVEL = os.environ.get("COWSHED_EXAMPLES_LEVEL", "core")  # or full, which takes some minutes more
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the suite mounts file systems")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_erofs_driver_installs_is_found_runs_a_container_and_passes_the_suite(tmp_path, quick, greeting, engine_of):
    programs = plugins.environment(tmp_path / "venv") / "bin"
    env = {
        **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "VIRTUAL_ENV": str(programs.parent),
        "UV_OFFLINE": "1", "TMPDIR": quick,
    }  # fmt: skip

    def command(*words):
        return subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=1500)

    done = command("uv", "pip", "install", "-q", "--no-deps", "--no-build-isolation", str(TOP / "examples/erofs"))
    assert done.returncode == 0, done.stderr
    it = engine_of(tmp_path, "erofs", command=str(programs / "cowshed"))
    try:
        rows = [json.loads(line) for line in it.ok("driver", "list", "--format", "json").splitlines()]
        (row,) = [row for row in rows if row["Name"] == "erofs"]
        assert row["Distribution"] == "cowshed-driver-erofs 0.1.0"
        if "this kernel" in row["Reason"]:
            pytest.skip(row["Reason"])
        assert row["Verdict"] == "good", row["Reason"]
        assert it.ok("run", "--rm", greeting, "echo", "hello from an image").splitlines()[-1] == "hello from an image"
        assert it.ok("system", "check") == "clean\n"
    finally:
        it.close()
    it.assert_clean()
    done = command("cowshed-conformance", "erofs", "--level", LEVEL, "--report", "json")
    report = json.loads(done.stdout)
    failed = [(case["test"], case["reason"]) for case in report["cases"] if case["outcome"] in ("failed", "error")]
    assert (done.returncode, failed) == (0, []), done.stderr[-2000:]
    assert report["whole"]
