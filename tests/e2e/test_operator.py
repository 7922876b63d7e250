"""What operators ask: info, versions, listings as data, what is told on stderr, and what is refused."""

import json
import os
import re
import subprocess

import pytest


@pytest.fixture
def driver():
    return "overlay"


@pytest.fixture
def lived(pulled):
    """A store with an image, a running container with a label and a volume, and one that was never started."""
    pulled.ok(
        "run", "-d", "--name", "running", "--label", "role=front", "-v", "data:/data", pulled.image, "sleep", "600"
    )
    pulled.ok("create", "--name", "created", pulled.image, "true")
    return pulled


def test_info_counts_and_tells_of_store_and_host(lived):
    told = json.loads(lived.ok("info", "--format", "json"))
    assert (told["Containers"], told["ContainersRunning"], told["ContainersStopped"]) == (2, 1, 1)
    assert (told["Images"], told["Driver"], told["DriversInUse"]) == (1, "overlay", ["overlay"])
    assert (told["RootDir"], told["RunRootDir"]) == (str(lived.root), str(lived.run_root))
    assert told["KernelVersion"] == os.uname().release
    assert told["CgroupVersion"] in ("1", "2")
    assert told["NCPU"] == os.cpu_count()
    assert told["Warnings"] == []
    assert lived.ok("info", "-f", "{{.Driver}} {{.ContainersRunning}}") == "overlay 1\n"
    text = lived.ok("system", "info")
    assert "Storage Driver: overlay\n" in text
    assert f"Root Dir: {lived.root}\n" in text
    assert " Drivers of this store: overlay\n" in text
    assert re.search(r"^Total Memory: [0-9.]+GiB$", text, re.M)


def test_version_is_the_same_wherever_it_is_asked_for(engine):
    number = engine.ok("--version").split()[1]
    assert engine.ok("version") == f"cowshed {number}\n"
    assert engine.ok("version", "--format", "{{.Server.Version}} {{.Client.Version}}") == f"{number} {number}\n"
    assert json.loads(engine.ok("version", "-f", "json"))["Os"] == "linux"


def timeless(text):
    """Without how long ago something was, which the next call may tell otherwise."""
    return re.sub(r'"(RunningFor|CreatedSince|Status)":"[^"]*"', "", text)


LISTINGS = [
    ("ps", "-a"), ("images",), ("history", "IMAGE"), ("driver", "list"), ("volume", "ls"), ("system", "df"),
    ("storage", "df"), ("storage", "tree"),
]  # fmt: skip


@pytest.mark.parametrize("words", LISTINGS, ids=" ".join)
def test_every_listing_is_a_table_json_and_a_template(lived, words):
    words = [lived.image if word == "IMAGE" else word for word in words]
    rows = [json.loads(line) for line in lived.ok(*words, "--format", "json").splitlines()]
    assert rows
    one, other = (timeless(lived.ok(*words, "--format", style)) for style in ("{{json .}}", "json"))
    assert one == other
    table = lived.ok(*words).splitlines()
    assert len(table) == len(rows) + 1
    assert re.fullmatch(r"[A-Z ]+", table[0]), table[0]
    fields = list(rows[0])
    first = "\t".join(f"{{{{.{name}}}}}" for name in fields[:2])
    lines = lived.ok(*words, "--format", first).splitlines()
    assert [line.split("\t") for line in lines] == [[str(row[name]) for name in fields[:2]] for row in rows]
    assert lived.ok(*words, "--format", f"table {first}").splitlines()[0].isupper()
    wrong = lived(*words, "--format", "{{.Nme}}")
    assert wrong.returncode == 125
    assert b"there is no field Nme" in wrong.stderr


def test_labels_and_their_titles(lived):
    assert lived.ok("ps", "--format", '{{.Names}}={{.Label "role"}}') == "running=front\n"
    assert lived.ok("ps", "--format", r'table {{.Names}}\t{{.Label "role"}}') == "NAMES     role\nrunning   front\n"


INSPECTIONS = [
    ("inspect", "running"),
    ("inspect", "IMAGE"),
    ("image", "inspect", "IMAGE"),
    ("driver", "why"),
    ("info",),
]


@pytest.mark.parametrize("words", INSPECTIONS, ids=" ".join)
def test_every_inspection_is_json_and_a_template(lived, words):
    words = [lived.image if word == "IMAGE" else word for word in words]
    whole = json.loads(lived.ok(*words, "--format", "json"))
    (whole,) = whole if isinstance(whole, list) else [whole]
    one = json.loads(lived.ok(*words, "--format", "{{json .}}"))
    assert set(one) == set(whole)
    key = next(name for name, value in whole.items() if isinstance(value, str) and value)
    assert lived.ok(*words, "-f", f"{{{{.{key}}}}}") == f"{whole[key]}\n"


@pytest.mark.parametrize("way", ["flag", "environment", "file"])
def test_another_runtime_is_refused_before_anything_is_pulled_and_hinders_nothing_else(engine, greeting, tmp_path, way):
    if way == "file":
        (tmp_path / "config.toml").write_text('[runtime]\ndefault = "other"\nbinaries.other = "/bin/true"\n')
    flags = {"flag": ["--runtime", "other"], "environment": [], "file": ["--config", str(tmp_path / "config.toml")]}[
        way
    ]
    env = {"COWSHED_RUNTIME": "other"} if way == "environment" else {}
    done = engine(*flags, "run", "--rm", greeting, "true", env=env)
    assert done.returncode == 125
    (line,) = done.stderr.decode().splitlines()
    assert "runtime other (" in line
    assert "native" in line
    assert engine.ok("images", "-q") == ""
    assert engine(*flags, "ps", env=env).returncode == 0
    assert engine("--runtime", "native", "run", "--rm", greeting, "true", env=env).returncode == 0


@pytest.mark.parametrize("words", [("driver", "why"), ("driver", "list"), ("version",), ("help",), ("run", "--help")])
def test_a_question_makes_no_store(engine, words):
    engine.ok(*words)
    assert not engine.root.exists()
    assert [p.name for p in engine.root.parent.iterdir() if p.name.startswith(".cowshed")] == []


def test_why_is_true_without_the_right_to_administer(engine):
    """Overlay needs CAP_SYS_ADMIN: to say that the file system lacked something would send people to another disk."""
    words = ["setpriv", "--bounding-set", "-sys_admin", *engine.words("driver", "why", "-f", "json")]
    done = subprocess.run(words, env=engine.env, capture_output=True, check=True)
    told = json.loads(done.stdout)
    (overlay,) = [d for d in told["Drivers"] if d["Name"] == "overlay"]
    (reason,) = overlay["Reasons"]
    assert (overlay["Verdict"], reason["Code"], reason["Remedy"]) == (
        "unusable",
        "overlay.not-permitted",
        "run as root",
    )
    assert told["Problem"].startswith("driver overlay cannot be used: this user may not")


@pytest.mark.parametrize("named", [[], ["--driver", "overlay"]], ids=["chosen", "named"])
def test_why_names_a_misspelt_option(engine, named):
    engine.driver = None
    told = json.loads(engine.ok(*named, "--driver-option", "idnex=on", "driver", "why", "-f", "json"))
    assert "driver overlay has no option idnex" in told["Problem"]
    assert told["Remedy"] == "did you mean index?"


def test_a_driver_that_was_only_tried_is_not_the_store_s(engine, greeting):
    """copy is poor: having been named for one command that failed is no consent for all that follow."""
    engine.driver = "copy"
    assert engine("pull", "-q", f"{greeting}-that-is-missing").returncode == 125
    engine.driver = None
    assert json.loads(engine.ok("driver", "why", "--format", "json"))["Choice"] == "overlay"
    engine.driver = "copy"
    engine.ok("pull", "-q", greeting)
    engine.driver = None
    assert engine.ok("run", "--rm", greeting, "cat", "three") == "three\n"
    assert engine.ok("info", "-f", "{{.Driver}} {{.DriversInUse}}") == "copy [copy]\n"


def test_what_is_told_has_levels_and_keeps_off_the_output(engine, greeting):
    quiet = engine("pull", "-q", greeting)
    assert quiet.stderr == b""
    engine.ok("rmi", greeting)
    told = engine("--log-level", "info", "pull", "-q", greeting)
    assert told.stdout == quiet.stdout
    assert "cowshed: info: driver overlay: option --driver says overlay\n" in told.stderr.decode()
    assert b"debug" not in told.stderr
    engine.ok("rmi", greeting)
    told = engine("--log-level", "debug", "pull", "-q", greeting)
    assert told.stdout == quiet.stdout
    assert re.search(
        rf"cowshed: debug: GET http://{greeting.partition('/')[0]}/v2/\S+ answered 200\n", told.stderr.decode()
    )
    assert "cowshed: debug: driver step overlay.prepare." in told.stderr.decode()
    assert engine("--log-level", "error", "run", "--rm", greeting, "true").stderr == b""


def test_a_reader_that_goes_away_and_a_full_output(lived):
    """`cowshed ps | true` ends as programs do that write to nobody; output that cannot be written is an error."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(lived.words("ps"), env=lived.env, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(lived.words("ps"), env=lived.env, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (125, b"cowshed: standard output: No space left on device\n")


def test_changing_one_s_mind_about_the_driver_needs_no_registry(engine, greeting, tmp_path):
    engine.ok("pull", "-q", greeting)
    blocked = tmp_path / "blocked.toml"
    blocked.write_text(f'[registries."{greeting.partition("/")[0]}"]\nblocked = true\n')
    engine.driver = "copy"
    assert engine.ok("--config", str(blocked), "run", "--rm", greeting, "cat", "three") == "three\n"
    assert engine("--config", str(blocked), "pull", greeting).returncode == 125
    assert engine.ok("info", "-f", "{{.DriversInUse}}") == "[copy overlay]\n"
    assert engine.ok("system", "check").splitlines()[-1] == "clean"
