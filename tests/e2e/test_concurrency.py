"""Two hundred commands at once on one store: no undocumented error, no deadlock, `ps` answers all the while."""

import concurrent.futures
import os
import random
import threading
import time

import pytest
from cowshed_testing import leftovers

# What a command may say when another one was faster; everything else is a fault.
DOCUMENTED = (
    b"no such container", b"no such image", b"no such container or image", b"container name", b"is running",
    b"is used by", b"is being worked on by another command", b"is being removed", b"was removed meanwhile",
    b"is not running", b"is being made or removed",
)  # fmt: skip
COUNT = int(os.environ.get("COWSHED_CONCURRENT_COMMANDS", "200"))


class Watcher(threading.Thread):
    """`ps -a` without end; how long each took."""

    def __init__(self, engine):
        super().__init__()
        self.engine, self.took, self.failed, self.stopped = engine, [], [], threading.Event()

    def run(self):
        while not self.stopped.is_set():
            begun = time.monotonic()
            done = self.engine("ps", "-a")
            self.took.append(time.monotonic() - begun)
            if done.returncode != 0:
                self.failed.append(done)


@pytest.mark.slow
def test_two_hundred_mixed_commands(pulled):
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    chance = random.Random(seed)
    names = [f"box{n}" for n in range(12)]  # no hexadecimal digits: a prefix of an id would be meant as well
    chosen = []
    for n in range(COUNT):
        name = names[n % len(names)]
        chosen.append(chance.choice([
            ("pull", "-q", pulled.image), ("run", "--rm", pulled.image, "true"),
            ("run", "--rm", "-v", "/data", pulled.image, "true"), ("run", "--name", name, pulled.image, "true"),
            ("run", "-d", "--name", name, pulled.image, "sleep", "1000"),
            ("create", "--name", name, pulled.image, "true"), ("start", name),
            ("stop", "-t", "0", name), ("exec", name, "true"), ("rm", "-f", name), ("rm", name),
            ("ps", "-a"), ("images",), ("tag", pulled.image, f"test/c:{n % 5}"), ("rmi", f"test/c:{n % 5}"),
            ("commit", name, f"test/c:{n % 5}"), ("inspect", name), ("system", "check"),
        ]))  # fmt: skip
    watcher = Watcher(pulled)
    watcher.start()
    try:
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            results = list(zip(chosen, pool.map(lambda words: pulled(*words, timeout=300), chosen), strict=True))
    finally:
        watcher.stopped.set()
        watcher.join()
    assert watcher.failed == []
    print(f"ps: {len(watcher.took)} times, longest {max(watcher.took):.3f} s")
    assert max(watcher.took) < 10
    ids = set(pulled.ok("ps", "-aq", "--no-trunc").split())
    for words, done in results:
        assert b"Traceback" not in done.stderr, (words, done.stderr)
        assert b"internal error" not in done.stderr, (words, done.stderr)
        if done.returncode != 0:
            assert any(text in done.stderr for text in DOCUMENTED), (words, done)
        if words[0] in ("ps", "images", "pull", "tag", "system") or "--rm" in words:
            assert done.returncode == 0, (words, done.stdout, done.stderr)
    for name in pulled.names():
        pulled.ok("rm", "-f", "-v", name)
    deadline = time.monotonic() + 10
    while pulled.children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert pulled.children() == []
    assert pulled.ok("system", "check").splitlines()[-1] == "clean"
    assert leftovers.files(str(pulled.root), pulled.run_directory()) == []
    assert leftovers.groups(ids) == []
