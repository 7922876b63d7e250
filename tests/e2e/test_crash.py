"""kill -9 of commands at every named step and at random moments: the next command works, the store checks clean,
nothing is left: no file, row, mount, loop device, control group or process.

COWSHED_CRASH_ROUNDS: random moments over both drivers (200).
"""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cowshed_testing import leftovers

# command, and what has to be there before: an image, a container "made" that has ended, or one "up" that runs
VICTIMS = {
    "pull": (("pull", "-q", "IMAGE"), ""),
    "load": (("load", "-q", "-i", "ARCHIVE"), ""),
    "run": (("run", "--rm", "IMAGE", "true"), "image"),
    "run-volume": (("run", "--name", "made", "-v", "/data", "IMAGE", "true"), "image"),
    "run-d": (("run", "-d", "--name", "made", "IMAGE", "sleep", "1000"), "image"),
    "create": (("create", "--name", "made", "IMAGE", "true"), "image"),
    "start": (("start", "made"), "made"),
    "rm": (("rm", "made"), "made"),
    "rm-f": (("rm", "-f", "-v", "up"), "up"),
    "exec": (("exec", "up", "true"), "up"),
    "rmi": (("rmi", "IMAGE"), "image"),
    "commit": (("commit", "up", "test/committed:1"), "up"),
    "import": (("import", "ARCHIVE", "test/imported:1"), ""),
    "save": (("save", "-q", "-o", "/dev/null", "IMAGE"), "image"),
    "image-copy": (("image", "copy", "-q", "docker-archive:ARCHIVE", "cowshed:IMAGE"), ""),
    "manifest": (("manifest", "create", "--amend", "test/list", "IMAGE"), "image"),
    "cp": (("cp", "ARCHIVE", "made:/srv/copied"), "made"),
    "tag": (("tag", "IMAGE", "test/other:1"), "image"),
}
WITHOUT_STEPS = ("exec", "cp", "tag", "save", "manifest")  # they write nothing, only in a container, or one transaction
ROUNDS = int(os.environ.get("COWSHED_CRASH_ROUNDS", "200")) // 2


class Crash:
    def __init__(self, engine, archive):
        self.engine, self.archive = engine, archive
        self.ids = set()  # of all containers that were ever seen

    def words(self, name):
        stand_ins = {"IMAGE": self.engine.image, "ARCHIVE": str(self.archive)}
        words = VICTIMS[name][0]
        for stand_in, meant in stand_ins.items():
            words = tuple(word.replace(stand_in, meant) for word in words)
        return words

    def prepare(self, name):
        """What the command needs, and nothing else."""
        engine, needed = self.engine, VICTIMS[name][1]
        there = engine.names()
        for other in there:
            if (other, needed) not in (("up", "up"), ("made", "made")):
                engine.ok("rm", "-f", "-v", other)
        if not needed:
            if engine.ok("images", "-q"):
                engine.ok("rmi", "-f", engine.image)
            return
        engine.ok("pull", "-q", engine.image)
        if needed == "made" and "made" not in there:
            engine.ok("create", "--name", "made", engine.image, "sh", "-c", "echo x > /new")
        if needed == "up" and "up" not in engine.ok("ps", "--format", "{{.Names}}").split():
            if "up" in there:
                engine.ok("rm", "-f", "up")
            engine.ok("run", "-d", "--name", "up", "-v", "/data", engine.image, "sh", "-c", "echo x > /new; sleep 1000")

    def see(self):
        self.ids |= set(self.engine.ok("ps", "-aq", "--no-trunc").split())

    def assert_next_works(self):
        engine = self.engine
        self.see()
        engine.ok("pull", "-q", engine.image)
        engine.ok("run", "--rm", engine.image, "true")
        assert engine.ok("system", "check").strip().splitlines()[-1] == "clean"

    def assert_nothing_left(self):
        """Without its containers the store is as if nothing had happened."""
        engine = self.engine
        for name in engine.names():
            engine.ok("rm", "-f", "-v", name)
        deadline = time.monotonic() + 10
        while engine.children() and time.monotonic() < deadline:
            time.sleep(0.01)  # a monitor that ends, or what it became to clean up
        assert engine.children() == []
        assert leftovers.files(str(engine.root), engine.run_directory()) == []
        assert leftovers.groups(self.ids) == []
        assert leftovers.mounts(str(engine.root)) == []


@pytest.fixture
def crash(pulled, tmp_path, greeting_archive):
    it = Crash(pulled, greeting_archive)
    yield it
    for name in pulled.names():
        pulled.ok("rm", "-f", "-v", name)


@pytest.mark.parametrize("driver", ["overlay"])
def test_what_is_left_is_seen(crash, tmp_path):
    crash.prepare("rm-f")
    crash.see()
    engine, root = crash.engine, crash.engine.root
    assert leftovers.files(str(root), engine.run_directory()) == []
    for path in ("db.old", "containers/x", "blobs/partial/x", "drivers/overlay/trash/x", "drivers/overlay/active/x"):
        (root / path).mkdir()
        assert leftovers.files(str(root), engine.run_directory()) == [f"left: {root}/{path}"]
        (root / path).rmdir()
    assert len(leftovers.groups(crash.ids)) >= 1
    assert leftovers.mounts(str(root))
    assert len(engine.children()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VICTIMS if name not in WITHOUT_STEPS])
def test_killed_at_each_named_step(crash, name, tmp_path):
    engine = crash.engine
    crash.prepare(name)
    engine.ok(*crash.words(name), env={"COWSHED_FAULT": f"trace@{tmp_path}/steps"})
    passed = Path(tmp_path, "steps").read_text().split()
    assert len(passed) >= 2, passed
    for step in dict.fromkeys(passed):
        crash.prepare(name)
        done = engine(*crash.words(name), env={"COWSHED_FAULT": f"kill@{step}"})
        assert done.returncode == -signal.SIGKILL, (step, done)
        crash.assert_next_works()
        crash.assert_nothing_left()


@pytest.mark.slow
def test_killed_at_random_moments(crash):
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    chance = random.Random(seed)
    longest = {}
    for name in VICTIMS:
        crash.prepare(name)
        begun = time.monotonic()
        crash.engine.ok(*crash.words(name))
        longest[name] = time.monotonic() - begun
    for n in range(ROUNDS):
        name = chance.choice(list(VICTIMS))
        crash.prepare(name)
        process = crash.engine.spawn(
            *crash.words(name), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(chance.random() * longest[name] * 1.1)
        process.kill()
        process.wait()
        crash.assert_next_works()
        if n % 5 == 4:
            crash.assert_nothing_left()
    crash.assert_nothing_left()
