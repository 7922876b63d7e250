"""Stores on every file system that people have: what `driver why` says, and whether it is true."""

import json
from pathlib import Path

import pytest
from cowshed_testing.filesystems import mounted

OVERLAY_WORKS = {"ext4": True, "xfs": True, "xfs-no-ftype": False, "btrfs": True, "tmpfs": True, "overlay": False}
LACKS = {"xfs-no-ftype": "d_type", "overlay": "itself on overlay"}


@pytest.fixture(params=OVERLAY_WORKS)
def backing(request, tmp_path):
    with mounted(request.param, str(tmp_path)) as path:
        yield request.param, path


@pytest.mark.parametrize("driver", [None])
def test_why_is_true(engine, backing, greeting):
    kind, path = backing
    engine.root = Path(path) / "store"
    told = json.loads(engine.ok("driver", "why", "--format", "json"))
    drivers = {d["Name"]: d for d in told["Drivers"]}
    usable = drivers["overlay"]["Verdict"] != "unusable"
    assert usable == OVERLAY_WORKS[kind], told
    if usable:
        assert told["Choice"] == "overlay"
        assert engine.ok("run", "--rm", greeting, "cat", "three") == "three\n"
    else:
        assert told["Choice"] == ""
        assert "--driver copy" in told["Remedy"]
        assert LACKS[kind] in drivers["overlay"]["Reasons"][0]["Text"]
        assert drivers["overlay"]["Reasons"][0]["Remedy"]
        done = engine("run", "--rm", greeting, "true")
        assert done.returncode == 125, "copy is POOR and never chosen silently"
        assert b"--driver copy" in done.stderr
        engine.driver = "copy"
        assert engine.ok("run", "--rm", greeting, "cat", "three") == "three\n"
    engine.close()
    engine.driver = None
    # From now on the store has layers, and they decide
    again = json.loads(engine.ok("driver", "why", "--format", "json"))
    assert again["Choice"] == ("overlay" if usable else "copy")
    assert any(s["Source"] == "the store" and s["Kind"] == "chosen" for s in again["Steps"])
