"""What a server does by itself, and what its log says of it."""

import json
import os
import threading

import pytest
from cowshed_testing.distribution import digest

from cowshed.registry.server import chores
from cowshed.registry.server.journal import Journal
from cowshed_linux import files

IMAGE = (b"config", b"layer")


@pytest.fixture
def log(tmp_path):
    """(a journal, what it has been told)"""
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    yield Journal(fd), lambda: [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    os.close(fd)


def test_works_come_again_until_they_are_stopped(log):
    journal, told = log
    mine = chores.Chores(journal)
    done = threading.Semaphore(0)

    def work():
        done.release()
        raise ValueError("what went wrong")

    thread = mine.every(0.001, "work", work)
    for _ in range(3):
        assert done.acquire(timeout=30)
    mine.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert [line["error"] for line in told()][:3] == ["work: ValueError: what went wrong"] * 3


def test_a_collection_is_told(served, log):
    journal, told = log
    served.client.image("a/b", blobs=IMAGE)
    served.client.image("c/d", blobs=(b"x",))
    served.client.blob(b"loose")
    files.write_atomically(f"{served.store.root}/repositories/c+d/index.json", b"{")
    chores.collect(served.store, journal, grace=-60, untagged=False)
    failure, collected = told()
    assert "c+d/index.json cannot be understood" in failure["error"]
    assert (collected["event"], collected["blobs"], collected["freed"]) == ("collected", 1, 5)


def test_a_check_repairs_and_tells_what(served, log):
    journal, told = log
    served.client.image("a/b", blobs=IMAGE)
    path = served.store.pool_path(digest(b"layer"))
    os.chmod(path, 0o644)
    with open(path, "wb") as file:
        file.write(b"?")
    chores.check(served.store, journal, rate=0)
    damaged, missing, checked = told()
    assert damaged["error"].endswith("its bytes are not those of its name: move it to damaged/: done")
    assert missing["error"].endswith("which is not here: push the image again")
    assert (checked["event"], checked["findings"], checked["repaired"]) == ("checked", 2, 1)
    served.client.image("a/b", blobs=IMAGE)
    chores.check(served.store, journal, rate=0)
    assert (told()[-1]["findings"], told()[-1]["repaired"]) == (0, 0)
