"""The benchmark's script runs against today's commands, and its table says what is true."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("benchmark_table", TOP / "benchmarks/table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(table, name):
    (found,) = [row for row in table.ROWS if row["row"] == name]
    return found


def test_a_ratio_is_judged_by_medians(table):
    it = table.judge(row(table, "create"), {"cowshed": [30.0, 40.0, 900.0], "podman": [80.0, 80.0, 81.0]})
    assert (it["ours"], it["theirs"], it["ratio"], it["verdict"]) == (40.0, 80.0, 0.5, "met")
    it = table.judge(row(table, "create"), {"cowshed": [41.0], "podman": [80.0]})
    assert it["verdict"] == "missed"


def test_bounds_of_our_own_need_no_peer(table):
    assert table.judge(row(table, "pull, peak memory"), {"cowshed": [81.0]})["verdict"] == "missed"
    assert table.judge(row(table, "pull, peak memory"), {"cowshed": [80.0]})["verdict"] == "met"
    assert table.judge(row(table, "logs of 200 MB"), {"cowshed": [401.0]})["verdict"] == "met"
    assert table.judge(row(table, "logs of 200 MB"), {"cowshed": [399.0]})["verdict"] == "missed"


def test_what_was_not_measured_is_not_judged(table):
    assert table.judge(row(table, "start"), {"cowshed": [1.0]})["verdict"] == "no peer"
    assert table.judge(row(table, "start"), {"podman": [1.0]})["verdict"] == "not measured"


def test_the_script_times_every_short_command(tmp_path):
    words = [sys.executable, str(TOP / "benchmarks/commands.py"), "--only", "short", "--rounds", "0.01"]
    done = subprocess.run(
        [*words, "--work", f"{tmp_path}/work", "--out", f"{tmp_path}/out", "--peer", "none"],
        env={**os.environ, "PYTHONPATH": str(TOP / "tests/support")}, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["failures"] == []
    measured = {row["row"] for row in result["rows"] if row["ours"]}
    assert {"run --rm true", "run -d", "start", "exec true", "rm -f of a running one", "create"} <= measured
    assert {"ps -a", "images", "inspect"} <= measured
    assert "| run --rm true |" in (tmp_path / "out.md").read_text()
    assert not (tmp_path / "work").exists()


# ---------------------------------------------------------------- of drivers


def test_the_drivers_are_timed_with_ratios_and_controls(tmp_path):
    words = [sys.executable, str(TOP / "benchmarks/drivers.py"), "--driver", "copy@ext4", "--driver", "overlay@ext4"]
    small = ["--scale", "0.002", "--rounds", "0.3", "--size", "256"]
    done = subprocess.run(
        [*words, *small, "--place", tmp_path, "--out", tmp_path / "out"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert [it["name"] for it in result["subjects"]] == ["copy@ext4", "overlay@ext4"]
    failures = {it["name"]: it["failures"] for it in result["scenarios"]}
    assert failures.pop("quota").keys() <= {"copy@ext4", "overlay@ext4"}  # where the kernel has no quota by project
    assert failures == {name: {} for name in ("child", "changes", "commit", "removal")}
    rows = {row["key"]: row for it in result["scenarios"] for row in it["rows"]}
    for key in (
        "child/all/10-files-2-layers", "changes/driver", "changes/walk", "commit/durable", "removal/call",
        "removal/whole",
    ):  # fmt: skip
        for it in rows[key]["figures"].values():
            assert len(it["samples"]["value"]) == 4, key
            assert 0 < it["interval"][0] <= it["median"] <= it["interval"][1], key
    assert rows["changes/driver"]["versus"] == "changes/walk"
    assert set(rows["commit/durable"]["figures"]) == {"copy@ext4", "overlay@ext4", "bare@ext4"}
    assert all(it["written"] > 0 for it in rows["commit/durable"]["figures"].values())
    text = (tmp_path / "out.md").read_text()
    assert "to the bare file system | processor | written | runs |" in text
    assert "| overlay@ext4 | **" in text
    assert {path.name for path in tmp_path.iterdir()} == {"out.json", "out.md", "out.html"}


def test_a_driver_that_cannot_be_had_here_is_told(tmp_path):
    words = [sys.executable, str(TOP / "benchmarks/drivers.py"), "--place", str(tmp_path), "--driver", "btrfs@ext4"]
    done = subprocess.run([*words, "--size", "64"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 125
    assert "btrfs cannot be compared here: on ext4: " in done.stderr
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- of conversions


def test_conversions_are_timed_beside_copies(tmp_path):
    words = [sys.executable, str(TOP / "benchmarks/convert.py"), "--kind", "ext4", "--files", "40", "--size", "1"]
    done = subprocess.run(
        [*words, "--rounds", "1", "--out", f"{tmp_path}/out"],
        env={**os.environ, "PYTHONPATH": str(TOP / "tests/support")}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(json.loads((tmp_path / "out.json").read_text())["ext4"]) == {
        "cp -a, sync", "cp -a, sync, both read", "convert to copy",
    }  # fmt: skip
    assert "| convert to copy | " in (tmp_path / "out.md").read_text()
