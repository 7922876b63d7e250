"""The recorder and the player of the kit: what is written, and that it answers as the kernel did."""

import errno
import json
import os
import threading

import pytest

from cowshed.layers.host import EngineHost
from cowshed.storage import api
from cowshed.storage.errors import InUse, LayerId, ToolFailed
from cowshed.storage.kit import tracing
from cowshed.storage.kit.counting import operations
from cowshed.storage.kit.tracing import Mismatch, Recorder, Replay, Trace


class Library:
    """What stands for a binding of the kernel's."""

    version = "1.2"

    def __init__(self):
        self.made = []

    def make(self, name, *, size=0):
        if name in self.made:
            raise OSError(errno.EEXIST, f"{name}: exists")
        self.made.append(name)
        return api.Usage(size, None, len(self.made), True)


def broken():
    raise OSError(errno.ENXIO, "no such device")


def work(host, root):
    """What a driver does; the same with every host."""
    told = [host.run(("sh", "-c", "echo $0; echo wrong >&2; exit 3", root), timeout=10, ok=(3,))]
    for fails in (
        lambda: host.run(("no-such-program-here", "x"), timeout=10),
        lambda: host.call("dm.remove", broken, changes=False),
    ):
        with pytest.raises((ToolFailed, OSError)) as caught:
            fails()
        told.append((type(caught.value), str(caught.value), getattr(caught.value, "errno", None)))
    library = host.library("pool", Library)
    told += [library.version, library.make("one", size=7), library.make("two")]
    with pytest.raises(FileExistsError):
        library.make("two")

    def several():
        return [host.call("inner", max, 4, 5), library.make(os.urandom(16).hex())]

    told += [host.call("outer", several), host.call("bytes", bytes, 3), host.call("dict", dict, ((1, "a"),))]
    host.sync(1)
    return told


def quiet(monkeypatch):
    monkeypatch.setattr("cowshed.layers.host.files.syncfs", lambda fd: None)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_played_back_is_what_came_back(tmp_path, monkeypatch):
    quiet(monkeypatch)
    with Trace(str(tmp_path / "trace"), "/here") as trace:
        wanted = work(Recorder(EngineHost(), trace), "/here")
    player = Replay(str(tmp_path / "trace"), "/there")
    found = work(player, "/there")
    player.done()
    assert found[0].stdout == b"/here\n", "bytes are what they were"
    assert found[0].argv[-1] == "/there"
    assert (found[0].returncode, found[0].stderr) == (3, b"wrong\n")
    assert found[1:] == wanted[1:]


def test_the_lines_have_arguments_time_and_errno(tmp_path, monkeypatch):
    quiet(monkeypatch)
    path = tmp_path / "trace"
    with Trace(str(path)) as trace:
        work(Recorder(EngineHost(), trace), "/here")
    assert path.stat().st_mode & 0o777 == 0o600
    first, *records, last = lines(path)
    assert first["kind"] == "begin"
    by_name = {}
    for record in records:
        by_name.setdefault(record["name"], []).append(record)
    assert all(record["seconds"] >= 0 and record["pid"] == os.getpid() for record in records)
    assert by_name["sh"][0]["argv"][:2] == ["sh", "-c"]
    assert by_name["sh"][0]["status"] == 3
    assert by_name["no-such-program-here"][0]["error"] == "ToolFailed"
    assert (by_name["dm.remove"][0]["errno"], by_name["dm.remove"][0]["code"]) == (errno.ENXIO, "ENXIO")
    assert by_name["inner"][0]["arguments"] == [4, 5]
    assert by_name["inner"][0]["within"] == by_name["outer"][0]["n"]
    sums = {row["name"]: row for row in last["sums"]}
    assert (sums["pool.make"]["count"], sums["pool.make"]["failed"]) == (4, 1)
    assert sums["pool.make"]["longest"] <= sums["pool.make"]["seconds"]


def test_a_function_without_arguments_is_shown_with_what_it_knows(tmp_path):
    path, device, secret = tmp_path / "trace", "thin-7", object()

    def suspend():
        return device, secret

    with Trace(str(path)) as trace:
        Recorder(EngineHost(), trace).call("suspend", suspend)
    (record,) = [record for record in lines(path) if record["kind"] == "call"]
    assert record["known"] == {"device": "thin-7"}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda host: host.call("two", int, 1), "recorded was call one"),
        (lambda host: host.call("one", int, 2), "recorded was call one"),
        (lambda host: host.run(("one",), timeout=1), "recorded was call one"),
        (lambda host: [host.call("one", int, 1) for _ in range(2)], "nothing more was done"),
        (lambda host: host.done(), "1 more things were done"),
    ],
)
def test_a_driver_that_does_something_else_is_told(tmp_path, other, said):
    with Trace(str(tmp_path / "trace")) as trace:
        Recorder(EngineHost(), trace).call("one", int, 1)
    with pytest.raises(Mismatch, match=said):
        other(Replay(str(tmp_path / "trace")))


def test_ids_may_differ_and_what_could_only_be_shown_is_told_when_it_is_needed(tmp_path):
    with Trace(str(tmp_path / "trace")) as trace:
        host = Recorder(EngineHost(), trace)
        host.call("make", len, "a" * 8 + os.urandom(16).hex())
        host.call("thing", object)
    player = Replay(str(tmp_path / "trace"))
    assert player.call("make", len, "b" * 8 + os.urandom(16).hex()) == 40
    with pytest.raises(Mismatch, match="only shows this value"):
        player.call("thing", object)


def test_effects_stand_in_for_what_was_done_to_files(tmp_path):
    plan = api.MountPlan((api.FileSystem("strange", f"{tmp_path}/image"),))

    class Mounting(EngineHost):
        def mounted(self, plan):
            return EngineHost.mounted(self, api.MountPlan((api.Bind(str(tmp_path)),)))

    with Trace(str(tmp_path / "trace"), str(tmp_path)) as trace:
        host = Recorder(Mounting(), trace)
        host.run(("sh", "-c", "touch $0", f"{tmp_path}/image"), timeout=10)
        if os.geteuid() == 0:
            with host.mounted(plan) as tree:
                assert "image" in os.listdir(tree.path)
    there = tmp_path / "there"
    there.mkdir()
    effects = {
        "sh": lambda argv: (there / argv[-1].rpartition("/")[2]).write_text("made"),
        "strange": lambda plan, path: (open(f"{path}/image", "w").close(), plan.steps[0].source),
    }
    player = Replay(str(tmp_path / "trace"), str(there), effects)
    player.run(("sh", "-c", "touch $0", f"{there}/image"), timeout=10)
    assert (there / "image").read_text() == "made"
    if os.geteuid() == 0:
        with player.mounted(api.MountPlan((api.FileSystem("strange", f"{there}/image"),))) as tree:
            assert os.listdir(tree.path) == ["image"]
    player.done()


class Driver:
    capabilities = "some"

    def prepare(self, layer, options):
        raise InUse("somebody has it", remedy="wait")

    def scan(self):
        yield from (1, 2, 3)


def test_operations_are_counted_with_their_layer(tmp_path):
    path = tmp_path / "trace"
    layer = api.Layer(LayerId("a" * 32), 1, api.Kind.ACTIVE)
    with Trace(str(path)) as trace:
        driver = operations(Driver(), "mine", trace)
        assert driver.capabilities == "some"
        assert list(driver.scan()) == [1, 2, 3]
        with pytest.raises(InUse):
            driver.prepare(layer, None)
    _, scan, prepare, summary = lines(path)
    assert (scan["kind"], scan["name"]) == ("operation", "mine.scan")
    assert (prepare["layer"], prepare["error"], prepare["remedy"]) == (layer.id, "InUse", "wait")
    assert {row["name"]: row["count"] for row in summary["sums"]} == {"mine.scan": 1, "mine.prepare": 1}


def test_threads_do_not_mix_what_is_within_what(tmp_path):
    path, both = tmp_path / "trace", threading.Barrier(2)
    with Trace(str(path)) as trace:
        host = Recorder(EngineHost(), trace)

        def outer(name):
            def do():
                both.wait(10)
                host.call(f"in {name}", int)
                both.wait(10)

            host.call(name, do)

        threads = [threading.Thread(target=outer, args=(name,)) for name in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    records = {record["name"]: record for record in lines(path) if "n" in record}
    assert all(records[f"in {name}"]["within"] == records[name]["n"] for name in ("a", "b"))


def test_a_trace_of_another_format_is_refused(tmp_path):
    (tmp_path / "trace").write_text('{"kind": "begin", "format": 99}\n')
    with pytest.raises(Mismatch, match="format 99"):
        Replay(str(tmp_path / "trace"))


def test_the_kit_shows_what_it_cannot_hold():
    assert tracing._written(b"x" * (1 << 17), "") == {"shown": "131072 bytes"}
    assert tracing._written(object, "")["shown"].startswith("<class")
