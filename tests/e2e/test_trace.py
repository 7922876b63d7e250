"""`cowshed --trace FILE COMMAND`: everything that storage does is seen, and what it took."""

import json

import pytest


@pytest.fixture
def it(engine_of, tmp_path):
    made = engine_of(tmp_path, "overlay")
    yield made
    made.close()


def lines(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_a_trace_has_operations_mounts_and_sums(it, greeting, tmp_path):
    path = tmp_path / "trace"
    it.ok("--trace", str(path), "run", "--rm", greeting, "true")
    first, *records, last = lines(path.read_text())
    assert (first["kind"], first["root"]) == ("begin", str(it.root))
    done = [record for record in records if record["kind"] == "operation"]
    assert {"overlay.prepare", "overlay.commit", "overlay.mounts"} <= {record["name"] for record in done}
    assert all(record["layer"] for record in done if record["name"] == "overlay.prepare")
    mounts = [record for record in records if record["kind"] == "mount-step" and record["name"] == "overlay"]
    container = [record["step"] for record in mounts if "/active/" in str(record["step"]["upper"])]
    assert container, "the mount of the container is seen"
    assert any(step["lowers"] and ["index", "off"] in step["options"] for step in container)
    sums = {row["name"]: row for row in last["sums"]}
    count = sum(record["name"] == "overlay.prepare" for record in done)
    assert sums["overlay.prepare"]["count"] == count
    assert 0 < sums["overlay.prepare"]["longest"] <= sums["overlay.prepare"]["seconds"]


def test_an_error_is_in_the_trace_with_its_errno_and_the_sums_are_written_all_the_same(it, tmp_path):
    path = tmp_path / "trace"
    done = it("--trace", str(path), "--root", "/proc/nothing", "driver", "why")
    records = lines(path.read_text())
    assert records[-1]["kind"] == "summary"
    assert done.returncode in (0, 125)
    it("--trace", str(path), "create", "no-such-image")
    assert [record["kind"] for record in lines(path.read_text())].count("summary") == 2, "it is appended to"


def test_a_trace_goes_to_standard_error_or_is_told_by_the_environment(it, tmp_path):
    done = it("--trace", "-", "driver", "why")
    assert lines(done.stderr.decode())[-1]["kind"] == "summary"
    assert lines(done.stdout.decode()) == []
    path = tmp_path / "trace"
    assert it("driver", "why", env={"COWSHED_TRACE": str(path)}).returncode == 0
    assert lines(path.read_text())[-1]["kind"] == "summary"


def test_a_trace_that_cannot_be_written_is_told_before_anything_is_done(it, tmp_path):
    done = it("--trace", str(tmp_path / "none/trace"), "ps")
    assert done.returncode == 125
    assert done.stderr.decode().startswith("cowshed: the trace cannot be written to ")
    assert len(done.stderr.splitlines()) == 1


def test_all_commands_are_counted_until_it_is_to_begin_anew(it, greeting):
    def counted():
        rows = [json.loads(line) for line in it.ok("driver", "stats", "--format", "json").splitlines()]
        return {(row["Driver"], row["Kind"], row["Name"]): row for row in rows}

    it.ok("pull", "-q", greeting)
    it.ok("driver", "stats", "--reset")
    assert counted() == {}
    for _ in range(2):
        it.ok("run", "--rm", greeting, "true")
    found = counted()
    for key in (("operation", "prepare"), ("operation", "remove"), ("mount", "overlay")):
        row = found["overlay", *key]
        assert (row["Count"], row["Failed"]) == (2, 0)
        assert 0 < row["LongestSeconds"] <= row["TotalSeconds"]
    assert it.ok("driver", "stats", "overlay").splitlines()[0].split() == [
        "DRIVER", "KIND", "NAME", "COUNT", "FAILED", "TOTAL", "MEAN", "LONGEST"]  # fmt: skip
    assert b"has not been used with driver zfs" in it("driver", "stats", "zfs").stderr
