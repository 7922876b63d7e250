"""Counting what drivers do: in one process, and added up over many."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from cowshed.layers import metrics
from cowshed.storage import api
from cowshed.storage.kit.counting import Counted, Counter, Sums, operations


@pytest.fixture(autouse=True)
def _nothing_of_others():
    metrics._counters.clear()
    yield
    metrics._counters.clear()


def add(driver, name, seconds, *, kind="call", failed=False):
    metrics.counter(driver).sums.add(kind, name, seconds, failed=failed)


def rows(run):
    return [(row.driver, row.kind, row.name, row.count, row.failed, row.seconds, row.longest)
            for row in metrics.read(run)]  # fmt: skip


def test_what_commands_write_is_added_up(tmp_path):
    run = str(tmp_path)
    add("one", "x", 0.25)
    add("one", "x", 0.5, failed=True)
    add("two", "two.prepare", 2.0, kind="operation")
    metrics.write(run)
    metrics.write(run)  # nothing is counted twice
    add("one", "x", 0.125)
    metrics.write(run)
    assert rows(run) == [("two", "operation", "prepare", 1, 0, 2.0, 2.0), ("one", "call", "x", 3, 1, 0.875, 0.5)]
    metrics.forget(run)
    assert rows(run) == []
    assert metrics.read(f"{run}/none") == []
    metrics.forget(f"{run}/none")


def test_the_file_does_not_grow_and_nothing_is_lost_by_its_folding(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_LARGE", 200)
    run = str(tmp_path)

    def work(n):
        pid = os.fork()
        if pid == 0:
            metrics._counters.clear()
            add("one", "a tool\twith a tab", 0.5)
            add("one", f"other{n % 3}", 0.5)
            metrics.write(run)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(60)))
    assert {(row.name, row.count) for row in metrics.read(run)} == {
        ("a tool with a tab", 60), ("other0", 20), ("other1", 20), ("other2", 20)}  # fmt: skip
    assert os.stat(f"{run}/metrics").st_size < 1000
    assert os.listdir(run) == ["metrics"]


def test_a_line_that_is_not_whole_counts_for_nothing(tmp_path):
    add("one", "x", 0.5)
    metrics.write(str(tmp_path))
    with open(tmp_path / "metrics", "ab") as file:
        file.write(b"one\tcall\tx\t1\nnonsense\n\xff\n")
    assert rows(str(tmp_path)) == [("one", "call", "x", 1, 0, 0.5, 0.5)]


def test_what_cannot_be_written_ends_no_command(tmp_path):
    add("one", "x", 0.5)
    metrics.write(f"{tmp_path}/none")
    assert os.listdir(tmp_path) == []


class Driver:
    capabilities = "plain"

    def prepare(self, layer):
        if layer is None:
            raise ValueError("none")
        return "made"

    def scan(self):
        yield from (1, 2)

    def check(self):
        yield 1
        raise ValueError("none")


def test_operations_and_what_they_ask_of_the_host_are_counted_with_their_failures():
    class Host:
        def call(self, name, function, *arguments, changes=True):
            return function(*arguments)

        def run(self, argv, *, timeout, ok=(0,), mounts=()):
            raise OSError(2, "no such tool")

    counter = Counter()
    driver, host = operations(Driver(), "d", counter), Counted(Host(), counter)
    assert driver.capabilities == "plain"
    assert driver.prepare(1) == "made"
    with pytest.raises(ValueError, match="none"):
        driver.prepare(None)
    assert list(driver.scan()) == [1, 2]
    with pytest.raises(ValueError, match="none"):
        list(driver.check())
    assert host.call("d.ioctl", lambda x: x + 1, 1) == 2
    assert host.library("lib", lambda: Driver()).prepare(1) == "made"
    with pytest.raises(OSError, match="no such tool"):
        host.run(["/sbin/mkfs.d", "-q"], timeout=1)
    found = {(row["kind"], row["name"]): (row["count"], row["failed"]) for row in counter.sums.rows()}
    assert found == {
        ("operation", "d.prepare"): (2, 1), ("operation", "d.scan"): (1, 0),
        ("operation", "d.check"): (1, 1), ("call", "d.ioctl"): (1, 0),
        ("call", "lib.prepare"): (1, 0), ("run", "mkfs.d"): (1, 1),
    }  # fmt: skip
    assert all(0 <= row["longest"] <= row["seconds"] for row in counter.sums.rows())
    sums = Sums()
    sums.add("operation", "x", 1.0, failed=False)
    sums.more("operation", "x", 2.0, 2.0, failed=False)
    sums.more("operation", "x", 3.0, 5.0, failed=True)
    assert sums.rows() == [
        {"kind": "operation", "name": "x", "count": 1, "seconds": 6.0, "longest": 5.0, "failed": 1}
    ]  # fmt: skip
    assert all(name in dir(Counted) for name in dir(api.Host) if not name.startswith("_"))
