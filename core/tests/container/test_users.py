"""Whom a container runs as: numbers are numbers, whatever the image calls its users."""

import os

import pytest

from cowshed.container import users
from cowshed.errors import BadUsage

PASSWD = """root:x:0:0::/root:/bin/sh
4294967296:x:0:0::/root:/bin/sh
4294967295:x:0:0::/root:/bin/sh
1:x:0:0::/root:/bin/sh
-1:x:0:0::/root:/bin/sh
one:x:1:2::/one:/bin/sh
strange:x:\u00b2:0::/:/bin/sh
huge:x:99999999999:0::/:/bin/sh
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text("root:x:0:\n7:x:0:\nwheel:x:10:one\nodd:x:\u00b2:one\n")
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("text", ["4294967296", "4294967295", "2147483648", "9" * 5000, "0:4294967296"])
def test_cve_2026_46680_a_number_that_is_too_large_is_no_name(root, text):
    with pytest.raises(BadUsage, match="numbers end at"):
        users.resolve(root, text)


def test_cve_2026_46680_without_its_defence_it_is_root(root, monkeypatch):
    number = users._number
    monkeypatch.setattr(users, "_number", lambda text, whole: number(text, whole) if len(text) < 10 else None)
    assert users.resolve(root, "4294967296")[0] == 0


@pytest.mark.parametrize(("text", "uid", "gid"), [
    ("1", 1, 2), ("1:7", 1, 7), ("1:0", 1, 0), ("one", 1, 2), ("one:wheel", 1, 10), ("0", 0, 0), ("12:34", 12, 34),
    ("01", 1, 2), ("2147483647", 2147483647, 0),
])  # fmt: skip
def test_cve_2026_30892_one_is_not_root(root, text, uid, gid):
    assert users.resolve(root, text)[:2] == (uid, gid)


@pytest.mark.parametrize(
    "text", ["\u00b2", "+1", "0x0", "1 ", "nobody", "strange", "huge", "one:nogroup", "one:\u00b2"]
)
def test_what_is_no_number_and_no_name_is_refused(root, text):
    with pytest.raises(BadUsage):
        users.resolve(root, text)
