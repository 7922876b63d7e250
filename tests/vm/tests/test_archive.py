"""What apt is asked, how often, and what is made of its answers. apt itself is stood in for."""

import os
import time

import pytest

from cowshed_vm import archive as archives
from cowshed_vm.archive import FRESH, Archive
from cowshed_vm.cache import Cache
from cowshed_vm.errors import VmError

TARGETS = """
u://mirror/debian/ bookworm main
u://mirror/debian/ bookworm contrib
u://mirror/debian/ bookworm-updates main
u://mirror/security/ bookworm-security main
"""
CONFIG = """
APT::Architecture "amd64";
Acquire::http::Proxy "u://proxy:1";
Acquire::Languages "en";
"""
NAMES = """
linux-image-6.1.0-9-cloud-amd64
linux-image-6.1.0-56-cloud-amd64
linux-image-6.1.0-57-cloud-amd64-unsigned
linux-image-6.1.0-58-amd64
"""


@pytest.fixture
def asked(monkeypatch):
    """What was run, a word each; what the programs print can be changed."""
    found = []
    printed = {"indextargets": TARGETS, "dump": CONFIG, "pkgnames": NAMES, "show": "Package: x\nVersion: 1.2-3\n"}

    def run(*words, cwd=None):
        verb = next((word for word in words[1:] if word in (*printed, "update")), words[-1])
        found.append(verb)
        return printed.get(verb, "").lstrip()

    monkeypatch.setattr(archives, "run", run)
    return found, printed


def test_the_newest_kernel_of_a_series_is_taken_by_number(tmp_path, asked):
    archive = Archive(Cache(tmp_path))
    assert archive.kernel("6.1") == "linux-image-6.1.0-56-cloud-amd64"
    assert archive.version("zfs-dkms") == "1.2-3"


def test_the_mirror_and_the_network_are_those_of_the_machine(tmp_path, asked):
    archive = Archive(Cache(tmp_path))
    listed = (tmp_path / "apt/sources.list").read_text().splitlines()
    assert [line.split("] ")[1] for line in listed] == [
        "u://mirror/debian/ bookworm main contrib",
        "u://mirror/debian/ bookworm-updates main",
        "u://mirror/security/ bookworm-security main contrib",
        "u://mirror/debian/ bookworm-backports main contrib",
    ]
    assert archive.sources == listed[:-1]
    assert archive.settings.read_text() == 'Acquire::http::Proxy "u://proxy:1";\n'


def test_apt_is_asked_once_a_day(tmp_path, asked):
    found, _ = asked
    for _ in range(2):
        archive = Archive(Cache(tmp_path))
        assert archive.kernel("6.1") == archive.kernel("6.1")
        archive.version("zfs-dkms")
    assert found == ["indextargets", "dump", "update", "pkgnames", "show"]
    yesterday = time.time() - FRESH - 60
    os.utime(tmp_path / "apt/answers.json", (yesterday, yesterday))
    Archive(Cache(tmp_path)).kernel("6.1")
    assert found[5:] == ["indextargets", "dump", "update", "pkgnames"]


def test_an_answer_does_not_make_the_lists_younger(tmp_path, asked):
    archive = Archive(Cache(tmp_path))
    noon = time.time() - FRESH / 2
    os.utime(tmp_path / "apt/answers.json", (noon, noon))
    archive.kernel("6.1")
    assert abs((tmp_path / "apt/answers.json").stat().st_mtime - noon) < 2


@pytest.mark.parametrize(
    ("verb", "ask", "text"),
    [
        ("pkgnames", lambda archive: archive.kernel("6.1"), "no kernel 6.1: "),
        ("show", lambda archive: archive.version("zfs-dkms"), "package zfs-dkms is not in "),
        ("indextargets", lambda archive: None, "name no Debian archive"),
    ],
)
def test_what_the_archive_lacks_is_one_line(tmp_path, asked, verb, ask, text):
    _, printed = asked
    printed[verb] = ""
    with pytest.raises(VmError, match=text) as raised:
        ask(Archive(Cache(tmp_path)))
    assert "\n" not in str(raised.value)
