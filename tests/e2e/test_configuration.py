"""`config show` and `config check`; and what is said when the configuration and the store, or two drivers, disagree."""

import json

import pytest


@pytest.fixture
def driver():
    return None


@pytest.fixture
def config(engine, tmp_path):
    """Write the configuration file that every command of the engine reads."""
    path = tmp_path / "config.toml"
    path.touch()
    engine.env["COWSHED_CONFIG"] = str(path)

    def write(text):
        path.write_text(text)
        return path

    return write


def test_show_tells_values_and_origins_and_makes_no_store(engine, config):
    path = config('[storage]\ndriver = "overlay"\n[storage.drivers.overlay]\nindex = "on"\n')
    rows = [json.loads(line) for line in engine.ok("config", "show", "--format", "json").splitlines()]
    told = {row["Name"]: (row["Value"], row["Origin"]) for row in rows}
    assert told["root"] == (str(engine.root), "option --root")
    assert told["storage.driver"] == ("overlay", f"{path}:2")
    assert told["storage.drivers.overlay.index"] == ("on", f"{path}:4")
    assert told["storage.drivers.overlay.xino"] == ("off", "default")
    assert not engine.root.exists()
    assert engine.ok("config", "show").splitlines()[0].split() == ["NAME", "VALUE", "ORIGIN", "OVERRULED"]
    assert engine.ok("--driver", "copy", "config", "show", "--format", "{{.Name}} {{.Overruled}}").splitlines()[2] == (
        f"storage.driver {path}:2 says overlay"
    )


def test_check_tells_all_errors_and_other_commands_the_first(engine, config, tmp_path):
    path = config('[storage]\ndrivr = "x"\ndurability = "comit"\n')
    done = engine("config", "check")
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        f"cowshed: {path}:2: storage.drivr is no setting: did you mean storage.driver?",
        f"cowshed: {path}:3: storage.durability is commit or none, not 'comit': did you mean commit?",
    ]
    assert engine("config", "check", str(path), env={"COWSHED_CONFIG": ""}).stderr == done.stderr
    shown = engine("config", "show")
    assert (shown.returncode, shown.stderr) == (1, done.stderr)
    (line,) = engine("ps").stderr.decode().splitlines()
    assert line == (
        f"cowshed: {path}:2: storage.drivr is no setting, and 1 more (cowshed config check {path}): "
        "did you mean storage.driver?"
    )
    config('[storage]\ndurability = "none"\n')
    assert engine.ok("config", "check") == "right\n"
    assert engine("config", "check", str(tmp_path / "missing")).returncode == 1


def test_a_configuration_that_names_another_driver_than_the_store_has(engine, config, greeting):
    engine.ok("--driver", "copy", "pull", "-q", greeting)
    path = config('[storage]\ndriver = "overlay"\n')
    both = f"configuration file {path} says overlay, and the store at {engine.root} has its layers in copy"
    remedy = (
        "cowshed storage convert --to overlay; or to stay with copy take the setting out, or say --driver copy"
    )  # fmt: skip
    assert f"  the store: disagrees: {both}: {remedy}" in engine.ok("driver", "why").splitlines()
    # It is said once, when it becomes true.
    assert engine("--driver", "copy", "create", "--name", "stays", greeting, "true").stderr == b""
    first, second = (engine("create", "--name", name, greeting, "true") for name in ("one", "two"))
    assert (first.returncode, first.stderr.decode()) == (0, f"cowshed: warn: {both}: {remedy}\n")
    assert (second.returncode, second.stderr) == (0, b"")
    names = engine.ok("ps", "-a", "--format", "{{.Names}} {{.Driver}}").split("\n")
    assert sorted(names[:-1]) == ["one overlay", "stays copy", "two overlay"]
    config("")
    assert "disagrees" not in engine.ok("driver", "why")


def test_a_configuration_that_names_a_driver_which_is_not_there(engine, config, greeting):
    engine.ok("--driver", "copy", "pull", "-q", greeting)
    path = config('[storage]\ndriver = "overlya"\n')
    done = engine("create", greeting, "true")
    assert done.returncode == 125
    assert done.stderr.decode() == (
        f"cowshed: no storage driver is called overlya (configuration file {path} says so): did you mean overlay?; "
        "the store has its layers in copy: --driver copy\n"
    )
    assert len(engine.ok("--driver", "copy", "create", greeting, "true")) == 65


def test_a_root_that_another_driver_claims(engine, greeting):
    for name in ("copy", "overlay"):
        engine.ok("--driver", name, "create", "--name", f"on-{name}", greeting, "true")
    drivers = engine.root / "drivers"
    (drivers / "overlay").rename(drivers / "aside")
    (drivers / "copy").rename(drivers / "overlay")
    done = engine("start", "on-overlay")
    told = done.stderr.decode()
    assert done.returncode != 0
    assert f"{drivers}/overlay belongs to driver copy, not overlay: its file `format` says so" in told
    assert f"mount or put back the store of overlay there; or give this one to copy: mv {drivers}/overlay" in told
    (drivers / "overlay").rename(drivers / "copy")
    engine.ok("start", "-a", "on-copy")
    (drivers / "aside").rename(drivers / "overlay")
    engine.ok("start", "-a", "on-overlay")
