"""The shape of the workspace: the lock fits the packages, every package looks alike, no address is kept."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
MEMBERS = [
    "linux",
    "runtime",
    "core",
    "drivers/overlay",
    "drivers/btrfs",
    "drivers/devicemapper",
    "drivers/zfs",
    "drivers/aufs",
    "drivers/copy",
    "tests/conformance",
]
LOCK = (TOP / "requirements/dev.txt").read_text()


def project(member: str) -> dict:
    return tomllib.loads((TOP / member / "pyproject.toml").read_text())["project"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_member_has_a_folder_and_no_driver_is_an_empty_shell():
    folders = {str(p.parent.relative_to(TOP)) for p in TOP.glob("*/pyproject.toml")} | {
        str(p.parent.relative_to(TOP)) for p in TOP.glob("*/*/pyproject.toml")
    }
    assert {path for path in folders - {"."} if not path.startswith("examples/")} == set(MEMBERS)


@pytest.mark.parametrize("member", MEMBERS)
def test_members_are_alike(member):
    it = project(member)
    assert it["version"] == project("core")["version"]
    assert it["license"] == "Apache-2.0"
    assert it["requires-python"] == ">=3.11"
    (package,) = (TOP / member / "src").iterdir()
    assert (package / "py.typed").exists()


@pytest.mark.parametrize("member", MEMBERS)
def test_the_lock_holds_every_dependency_of_a_member(member):
    locked = {normal(m) for m in re.findall(r"^([A-Za-z0-9._-]+)==", LOCK, re.M)}
    ours = {normal(project(m)["name"]) for m in MEMBERS}
    for requirement in project(member).get("dependencies", []):
        name = normal(re.match(r"[A-Za-z0-9._-]+", requirement)[0])
        assert name in locked | ours, f"{name} is not in requirements/dev.txt: run make lock"


def test_the_lock_has_hashes_and_no_addresses():
    for path in (TOP / "requirements").glob("*.txt"):
        text = path.read_text()
        assert "://" not in text
        assert len(re.findall(r"^\S+==", text, re.M)) <= text.count("--hash=sha256:")


def test_drivers_are_registered_under_their_own_names():
    for folder in (TOP / "drivers").iterdir():
        if (folder / "pyproject.toml").exists():
            points = project(f"drivers/{folder.name}")["entry-points"]["cowshed.storage_drivers"]
            assert points == {folder.name: f"cowshed_driver_{folder.name}:plugin"}


def test_make_help_lists_what_is_supported():
    said = subprocess.run(["make", "help"], cwd=TOP, capture_output=True, text=True, check=True).stdout
    listed = {line.split()[0] for line in said.splitlines()}
    assert {"help", "setup", "demo", "test", "check", "conformance", "bench", "docs", "clean", "lock"} <= listed


def test_the_engine_package_is_empty():
    assert (TOP / "core/src/cowshed/__init__.py").read_text() == ""
