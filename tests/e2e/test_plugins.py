"""Drivers from others: found wherever they are installed in the environment, and harmless when they are broken."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from cowshed_testing import plugins

TOP = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "distributions"
    path.mkdir()
    return path


@pytest.fixture
def engine(tmp_path, folder, engine_of):
    """Cowshed with one more directory of distributions on its path."""
    it = engine_of(tmp_path, command=plugins.launcher(tmp_path / "cowshed", folder))
    yield it
    it.close()
    it.assert_clean()


def refused(engine, *words):
    """The one line with which a command fails."""
    done = engine(*words)
    assert done.returncode == 125, (done.stdout, done.stderr)
    (line,) = [line for line in done.stderr.decode().splitlines() if line.startswith("cowshed: ")]
    assert b"Traceback" not in done.stderr
    return line


def test_broken_drivers_are_listed_with_their_reasons_and_stop_nobody(engine, folder, greeting):
    plugins.all_kinds(str(folder))
    done = engine("driver", "list", "--format", "json")
    assert (done.returncode, done.stderr) == (0, b"")
    listed = [json.loads(line) for line in done.stdout.splitlines()]
    broken = {row["Name"]: f"{row['Reason']}; {row['Remedy']}" for row in listed if row["Verdict"] == "broken"}
    assert set(broken) == {*plugins.BROKEN, "twice"} - {"badopen", "badinit"}
    assert "ModuleNotFoundError" in broken["noimport"]
    assert "ZeroDivisionError" in broken["badprobe"]
    assert "upgrade cowshed" in broken["newer"]
    owners = {row["Distribution"] for row in listed if row["Name"] == "twice"}
    assert owners == {"example-twice 1.0", "other-twice 1.0"}
    traced = engine("--debug", "driver", "list").stderr.decode()
    assert "example_noimport.py" in traced
    assert "ZeroDivisionError" in traced
    assert engine.ok("run", "--rm", greeting, "cat", "three") == "three\n", "overlay is chosen, whoever is broken"
    assert json.loads(engine.ok("driver", "why", "--format", "json"))["Choice"] == "overlay"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("noimport", "example-noimport 1.0 is broken: ModuleNotFoundError"),
        ("exits", "is broken: SystemExit"),
        ("newer", "needs interface 1.2; this engine has 1.1: upgrade cowshed"),
        ("badprobe", "driver badprobe has a bug: its probe raised ZeroDivisionError"),
        ("badinit", "driver badinit has a bug: its init raised KeyError"),
        ("mute", "driver mute cannot be used here: it does not say why"),
        ("badopen", "driver badopen has a bug: its open raised KeyError"),
        ("twice", "claimed by example-twice 1.0 and other-twice 1.0 (option --driver says so): uninstall one of them"),
        ("twice", "uninstall one of them: pip uninstall example-twice, or pip uninstall other-twice"),
        ("min", "did you mean mine?"),
    ],
)  # fmt: skip
def test_a_broken_driver_that_is_asked_for_fails_in_one_line(engine, folder, greeting, name, told):
    plugins.all_kinds(str(folder))
    assert told in refused(engine, "--driver", name, "pull", "-q", greeting)
    assert engine.ok("ps", "-a", "-q") == ""
    assert engine.ok("images", "-q") == ""
    checked = engine("system", "check")
    if name == "badopen":  # it could make its store, but cannot open it
        assert checked.returncode == 1
        assert b"driver badopen: cannot be opened: driver badopen has a bug" in checked.stdout
    else:
        assert (checked.returncode, checked.stdout.splitlines()[-1]) == (0, b"clean")


def test_a_falsy_driver_runs_containers(engine, folder, greeting):
    plugins.driver(str(folder), "falsy", plugins.FALSY)
    engine.driver = "falsy"
    assert engine.ok("run", "--rm", greeting, "cat", "three") == "three\n"


def test_options_come_from_file_and_flag_and_are_held_against_the_schema(engine, folder, greeting):
    plugins.driver(str(folder), "mine", 'plugin = made("mine")')
    config = folder / "config.toml"
    engine.env["COWSHED_CONFIG"] = str(config)

    def configured(text):
        config.write_text(f"[storage]\ndriver = 'mine'\n[storage.drivers.mine]\n{text}\n")

    configured("levl = 3")
    said = f"(configuration file {config}:4 says so)"
    assert f"driver mine has no option levl {said}: did you mean level?" in refused(engine, "pull", "-q", greeting)
    assert "has no option levl" in engine.ok("driver", "why")
    configured("level = 'high'")
    assert "option level of driver mine is a number, not 'high'" in refused(engine, "pull", "-q", greeting)
    configured("mode = 'slow'")
    assert engine.ok("run", "--rm", greeting, "cat", "three") == "three\n"
    configured("level = 9")  # mode is not said: it stays what the store was made with
    assert engine.ok("run", "--rm", greeting, "cat", "three") == "three\n"
    (mine,) = [d for d in json.loads(engine.ok("driver", "why", "-f", "json"))["Drivers"] if d["Name"] == "mine"]
    assert mine["Options"] == {"level": 9, "mode": "slow", "checked": False}, "as the store has them"
    configured("mode = 'fast'")
    assert "option mode of driver mine is 'slow' in this store" in engine.ok("driver", "why")
    told = refused(engine, "run", "--rm", greeting, "true")
    assert f"option mode of driver mine is 'slow' in this store and cannot become 'fast' {said}" in told
    assert "say --driver-option mode=slow to keep 'slow'" in told
    assert "make another store (--root DIRECTORY) to have 'fast'" in told
    assert engine.ok("--driver-option", "mode=slow", "run", "--rm", greeting, "cat", "three") == "three\n"
    other = str(engine.root) + "-2"
    assert engine.ok("--root", other, "run", "--rm", greeting, "cat", "three") == "three\n", "both are true commands"
    flag = ("--driver", "mine", "--driver-option", "mode=slow")
    engine.env.pop("COWSHED_CONFIG")
    assert engine.ok(*flag, "run", "--rm", greeting, "cat", "three") == "three\n"
    misspelt = ("--driver", "mine", "--driver-option", "mod=slow", "run", "--rm", greeting, "true")
    assert "did you mean mode?" in refused(engine, *misspelt)


def test_refresh_looks_again_for_what_the_store_remembers(engine, folder, greeting):
    path = Path(plugins.driver(str(folder), "mine", 'plugin = made("mine")\nother = None'))
    engine.driver = "mine"
    engine.ok("pull", "-q", greeting)
    before = path.stat()
    path.write_text(path.read_text().replace(":plugin", ":other "))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert engine("driver", "list", "--refresh").returncode == 0
    assert engine.ok("run", "--rm", greeting, "cat", "three") == "three\n", "what was remembered still works"
    path.write_text(path.read_text().replace(":other ", ":copy  "))
    (folder / "example_mine.py").write_text(plugins.MINE + 'plugin = copy2 = made("mine")\ncopy = made("mine")\n')
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    told = engine("driver", "list", "--refresh")
    line = f"driver mine was remembered as example_mine:plugin of {path}; it is example_mine:copy of {path}\n"
    assert line.encode() in told.stderr
    assert b"remembered" not in engine("driver", "list", "--refresh").stderr


# ---------------------------------------------------------------- installed by an installer

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "example-driver"
version = "1.0"

[project.entry-points."cowshed.storage_drivers"]
example = "example_driver:plugin"
"""


@pytest.mark.parametrize("way", ["wheel", "editable"])
def test_a_driver_that_pip_installs_into_the_environment_is_found(tmp_path, greeting, way, engine_of):
    """An environment of its own, with all that .venv holds, as `make setup` would have filled it."""
    environment = plugins.environment(tmp_path / "venv")
    source = tmp_path / "example"
    (source / "src/example_driver").mkdir(parents=True)
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "src/example_driver/__init__.py").write_text(plugins.MINE + '\nplugin = made("example")\n')
    install = [environment / "bin/uv", "pip", "install", "-q", "--offline", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*install, "--python", environment / "bin/python", *(["-e"] if way == "editable" else []), source],
        check=True, env={**os.environ, "VIRTUAL_ENV": str(environment)},
    )  # fmt: skip
    it = engine_of(tmp_path, "example", str(environment / "bin/cowshed"))
    try:
        (site,) = (environment / "lib").glob("python*/site-packages")
        (site / "counted.pth").write_text(f"import os; open({str(tmp_path / 'count')!r}, 'a').write('x')\n")
        assert "example" in it.ok("driver", "list", "-q").split()
        assert (tmp_path / "count").read_text() == "x", "code in .pth files is run once, however many drivers there are"
        for _ in range(2):  # by search, and as remembered
            assert it.ok("run", "--rm", greeting, "cat", "three") == "three\n"
    finally:
        it.close()
