"""ps, inspect, images, logs and history wait for nobody: not for a lock, not for a driver, not for a writer."""

import _sqlite3
import fcntl
import os
import re
import shutil
import subprocess
import sys

import pytest

from cowshed_linux import locks

QUESTIONS = (
    ("ps", "-a"), ("ps", "-q"), ("inspect", "one"), ("images",), ("images", "-q"), ("image", "inspect", "IMAGE"),
    ("history", "IMAGE"), ("logs", "one"),
)  # fmt: skip


@pytest.fixture
def asked(pulled):
    pulled.ok("run", "--name", "one", pulled.image, "echo", "said")

    def ask(code=""):
        """The answers; code is run first in each command's process."""
        answers = []
        for question in QUESTIONS:
            words = [pulled.image if word == "IMAGE" else word for word in question]
            if code:
                start = f"import sys; sys.path[:0] = {sys.path!r}\n{code}\nfrom cowshed.cli.main import main; main()"
                done = subprocess.run(
                    [sys.executable, "-c", start, *pulled.words(*words)[1:]],
                    capture_output=True, env=pulled.env, timeout=20,
                )  # fmt: skip
            else:
                done = pulled(*words, timeout=20)
            assert (done.returncode, done.stderr) == (0, b""), (question, done)
            # Time passes between two questions, and a column is as wide as the ages in it.
            answers.append(re.sub(rb" +", b" ", re.sub(rb"(\d+|About an?|Less than a) \w+ ago", b"AGO", done.stdout)))
        return answers

    pulled.ask = ask
    return pulled


def test_with_every_lock_held_and_a_transaction_begun(asked):
    before = asked.ask()
    assert before[-1] == b"said\n"
    folder = asked.root / "locks"
    held = []
    for name in os.listdir(folder):
        fd = locks.open_file(str(folder / name))
        held.append(fd)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if name not in ("monitors",):  # a held byte there says that a container runs
            fcntl.fcntl(fd, 37, _whole_file())  # F_OFD_SETLK
    db = _sqlite3.connect(str(asked.root / "db.sqlite"), isolation_level=None)
    db.execute("begin immediate")
    db.execute("update meta set value = value")
    try:
        answers = asked.ask()
    finally:
        db.close()
        for fd in held:
            os.close(fd)
    assert answers == before
    assert asked.ok("run", "--rm", asked.image, "true") == ""


def _whole_file():
    import struct

    return struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


BROKEN = """
from cowshed.storage import registry
def broken(*_, **__): raise RuntimeError("the plug-in is broken")
registry.load = registry.names = registry.installed = broken
"""


def test_with_the_driver_s_plug_in_broken_and_its_store_away(asked):
    before = asked.ask()
    shutil.move(asked.root / "drivers", asked.root / "drivers.away")
    try:
        assert asked.ask(BROKEN) == before
    finally:
        shutil.move(asked.root / "drivers.away", asked.root / "drivers")


def test_in_a_bind_mount_elsewhere(asked, tmp_path):
    """A store is read where it is mounted, and names nothing by the path that it was made at."""
    before = asked.ask()
    root, elsewhere = asked.root, tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(["mount", "--bind", root, elsewhere], check=True)
    try:
        asked.root = elsewhere
        answers = asked.ask()
        assert asked.ok("run", "--rm", asked.image, "cat", "three") == "three\n"
        assert asked.ok("start", "-a", "one") == "said\n"
    finally:
        asked.root = root
        asked("rm", "-f", "one")
        subprocess.run(["umount", elsewhere], check=True)
    assert [a.replace(os.fsencode(elsewhere), os.fsencode(root)) for a in answers] == before


def test_after_a_move(asked, tmp_path):
    asked.ok("run", "--name", "two", "-v", "kept:/kept", asked.image, "sh", "-c", "echo more >> /kept/it; cat /kept/it")
    os.rename(asked.root, tmp_path / "moved")
    asked.root = tmp_path / "moved"
    assert asked.ok("run", "--rm", asked.image, "cat", "three") == "three\n"
    assert asked.ok("start", "-a", "one") == "said\n"
    assert asked.ok("start", "-a", "two") == "more\nmore\n"
    assert asked.ok("run", "--rm", "-v", "kept:/kept", asked.image, "cat", "/kept/it") == "more\nmore\n"
    assert asked.ok("system", "check") == "clean\n"


@pytest.mark.parametrize("driver", ["overlay"])
def test_as_another_user(asked):
    """Somebody else's store is refused in one line, and nothing of it is changed."""
    become = ["setpriv", "--reuid", "65534", "--clear-groups"]
    if subprocess.run([*become, "test", "-x", asked.words()[0]]).returncode:
        pytest.skip(f"another user cannot enter the place of this checkout: {asked.words()[0]}")
    done = subprocess.run(
        [*become, *asked.words("ps", "-a")],
        capture_output=True, env={**asked.env, "HOME": "/nonexistent"},
    )  # fmt: skip
    assert done.returncode == 125, done
    assert done.stdout == b""
    assert done.stderr.count(b"\n") == 1, done.stderr
    assert done.stderr.startswith(b"cowshed: "), done.stderr
    assert b"Traceback" not in done.stderr
