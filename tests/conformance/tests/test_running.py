"""The suite as its users run it: by option, from a file of their own, from installed packages; reports and limits."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
MEMBERS = ("linux", "runtime", "core", "drivers/copy", "drivers/overlay", "tests/conformance")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the suite mounts file systems")


def pytest_(folder, *words, python=sys.executable, **environment):
    env = {**os.environ, "PYTHONPATH": str(HERE), "TMPDIR": str(folder), **environment}
    command = ["unshare", "--mount", "--propagation", "private", python, "-m", "pytest", "-q", *words]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=280)


def test_a_run_reports_each_case_with_what_it_ran_on(tmp_path):
    words = ["--pyargs", "cowshed_conformance", "--driver", "overlay", "--driver-option", "xino=auto"]
    done = pytest_(
        tmp_path, *words, "--backing", "tmpfs", "--report-dir", "out", "--conformance-seed", "7",
        "-k", "test_P01_ or test_L01_ or test_L04_ or test_D17_",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    report = json.loads((tmp_path / "out/conformance.json").read_text())
    assert report["driver"] == "overlay"
    assert report["options"]["xino"] == "auto"
    assert report["seed"] == 7
    assert report["backing"].startswith("tmpfs (rw")
    assert report["kernel"].startswith("Linux ")
    assert report["distribution"].startswith("cowshed-driver-overlay ")
    assert report["tools"]["mount"].startswith("mount from util-linux")
    assert {case["case"] for case in report["cases"]} == {"P01", "L01", "L04", "D17"}
    assert all(case["seconds"] >= 0 and case["test"].startswith(f"test_{case['case']}_") for case in report["cases"])
    assert report["counts"]["skipped"] == 1
    assert [(skip["code"], len(skip["tests"])) for skip in report["skipped"]] == [("capability", 1)]
    text = (tmp_path / "out/conformance.md").read_text()
    assert "| `test_P01_the_entry_point_names_an_object_of_its_own_name` | passed |" in text
    assert "- capability: nested_subvolumes is not declared: `test_D17_" in text


def test_a_case_that_hangs_fails_and_shows_where(tmp_path):
    done = pytest_(
        tmp_path, "--pyargs", "cowshed_conformance", "--driver", "hanging:driver", "-k", "test_L02_ or test_P02_"
    )
    assert done.returncode == 1
    assert "the case took longer than its 1 s" in done.stdout
    assert "hanging.py" in done.stdout
    assert "1 failed, 1 passed" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "which driver?"),
        (("--driver", "overlai"), "did you mean overlay?"),
        (("--driver", "json:dumps"), "not a DriverPlugin"),
        (("--driver", "nowhere:plugin"), "No module named 'nowhere'"),
        (("--driver", "copy", "--driver-option", "index"), "NAME=VALUE is wanted"),
        (("--driver", "overlay", "--driver-option", "indx=on"), "did you mean index?"),
        (("--driver", "overlay", "--driver-option", "index=perhaps"), "is one of off, on"),
    ],
)
def test_what_was_called_wrongly_is_told(tmp_path, words, said):
    done = pytest_(tmp_path, "--pyargs", "cowshed_conformance", "-k", "test_P02_", *words)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert said in done.stderr


def test_an_authors_own_file_of_a_few_lines(tmp_path):
    (tmp_path / "test_mine.py").write_text('from cowshed_conformance.suite import *\n\nDRIVER = "overlay"\n')
    done = pytest_(tmp_path, "test_mine.py", "-k", "test_P01_ or test_L0 or test_U07_ or test_H04_random")
    assert done.returncode == 0, done.stdout
    assert "conformance of overlay" in done.stdout
    (tmp_path / "test_mine.py").write_text(
        'from cowshed_conformance.suite import *\n\nDRIVER = "broken:plugin_CommittedWritable"\n'
    )
    done = pytest_(tmp_path, "test_mine.py", "-k", "test_L03_ or test_L02_")
    assert "1 failed, 1 passed" in done.stdout


def test_a_skip_without_a_code_fails_the_run(tmp_path):
    (tmp_path / "test_mine.py").write_text(
        "import pytest\nfrom cowshed_conformance.suite import *\n\nDRIVER = 'copy'\n\n"
        "def test_Z01_of_mine(store):\n    pytest.skip('not today')\n"
    )
    done = pytest_(tmp_path, "test_mine.py", "-k", "test_Z01_")
    assert done.returncode == 1
    assert "skipped without a code, which counts as a failure: test_Z01_of_mine" in done.stdout


def test_a_case_that_was_interrupted_has_no_result(tmp_path):
    (tmp_path / "test_mine.py").write_text(
        "import os, signal\nfrom cowshed_conformance.suite import *\n\nDRIVER = 'copy'\n\n"
        "def test_L01_of_mine(store):\n    pass\n\n"
        "def test_L02_of_mine(store):\n    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = pytest_(tmp_path, "test_mine.py", "-k", "of_mine", "--report-dir", "out")
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout
    report = json.loads((tmp_path / "out/conformance.json").read_text())
    assert [(case["case"], case["outcome"]) for case in report["cases"]] == [("L01", "passed")]


def test_a_run_is_repeated_by_its_seed(tmp_path):
    (tmp_path / "test_mine.py").write_text(
        "from cowshed_conformance.suite import *\n\nDRIVER = 'copy'\n\n"
        "def test_Z02_chance(chance, store):\n    print('drawn', chance.random())\n"
    )
    drawn = [
        [line for line in done.stdout.splitlines() if line.startswith("drawn")]
        for done in [pytest_(tmp_path, "test_mine.py", "-s", "-k", "test_Z02_", "--conformance-seed", seed)
                     for seed in ("1", "1", "2")]
    ]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]


def test_H08_the_order_of_the_cases_changes_no_result(tmp_path):
    """In the order of the files, and in two others; the last case, which looks at what was left, stays the last."""
    results = []
    for number, words in enumerate([(), ("--shuffle", "1"), ("--shuffle", "2")]):
        (tmp_path / str(number)).mkdir()
        done = pytest_(
            tmp_path / str(number), "-vv", "--pyargs", "cowshed_conformance", "--driver", "overlay",
            "-k", "test_P0 or test_L0 or test_M0 or test_R13_ or test_H05_", "--report-dir", "out", *words,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        lines = [line for line in done.stdout.splitlines() if "::test_" in line and "%]" in line]
        order = [line.split("::")[1].split()[0] for line in lines]
        assert order[-1].startswith("test_H05_")
        report = json.loads((tmp_path / str(number) / "out/conformance.json").read_text())
        results.append((order, {case["test"]: (case["outcome"], case["code"]) for case in report["cases"]}))
    assert results[0][1] == results[1][1] == results[2][1]
    assert results[0][0] != results[1][0] != results[2][0]
    assert sorted(results[0][0]) == sorted(results[1][0])


def build(source, folder):
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=source, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_H06_installed_packages_on_a_plug_in_out_of_tree_without_a_source_checkout(tmp_path):
    wheels, plugin = tmp_path / "wheels", tmp_path / "plugin"
    for member in MEMBERS:
        build(ROOT / member, wheels)
    plugin.mkdir()
    (plugin / "elsewhere.py").write_text((HERE / "elsewhere.py").read_text())
    (plugin / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "elsewhere"\nversion = "1.5"\n'
        '[project.entry-points."cowshed.storage_drivers"]\nelsewhere = "elsewhere:plugin"\n'
    )
    build(plugin, wheels)
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    site = next(venv.glob("lib/python3*/site-packages"))
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(site)
    # What is not ours is taken as it is installed here: nothing is downloaded.
    for path in Path(pytest.__file__).parents[1].iterdir():
        if "cowshed" not in path.name and path.suffix != ".pth" and not (site / path.name).exists():
            (site / path.name).symlink_to(path)
    done = pytest_(
        tmp_path, "--pyargs", "cowshed_conformance", "--driver", "elsewhere", "--level", "core", "--report-dir", "out",
        "-k", "test_P or test_L0 or test_S0 or test_U0 or test_H01_", python=str(venv / "bin/python"), PYTHONPATH="",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out/conformance.json").read_text())
    assert report["distribution"] == "elsewhere 1.5"
    assert {"P01", "L01", "S01"} <= {case["case"] for case in report["cases"] if case["outcome"] == "passed"}
    assert str(ROOT) not in done.stdout


def test_what_shows_a_fault_shrinks_to_a_few_lines(tmp_path):
    words = ["--pyargs", "cowshed_conformance", "--driver", "broken:plugin_ReportsTooFewChanges"]
    # What is shown would be another failure, were the case late on a busy machine.
    words += ["-k", "test_D22_the_quick", "--conformance-seed", "5"]
    done = pytest_(tmp_path, *words, COWSHED_TEST_SLOWDOWN="10")
    assert done.returncode == 1
    shown = re.findall(r"Failed: below: \[(.*)\]\nE .*above: \[(.*)\]", done.stdout)
    lengths = [len(re.findall(r"\w+\(", below + above)) for below, above in shown]
    assert 1 <= min(lengths) <= 3, shown  # one fault may show itself in several ways
