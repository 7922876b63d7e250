"""Stores on every file system that people have: what `driver why` says, and whether it is true."""

import json

import pytest
from cowshed_testing.filesystems import mounted

OVERLAY_WORKS = {"ext4": True, "xfs": True, "xfs-no-ftype": False, "btrfs": True, "tmpfs": True, "overlay": False}


@pytest.fixture(params=OVERLAY_WORKS)
def backing(request, tmp_path):
    with mounted(request.param, str(tmp_path)) as path:
        yield request.param, path


@pytest.mark.parametrize("driver", [None])
def test_why_is_true(engine, backing, greeting):
    from pathlib import Path

    kind, path = backing
    engine.root = Path(path) / "store"
    told = json.loads(engine.ok("driver", "why", "--format", "json"))
    verdicts = {d["name"]: d["verdict"] for d in told["drivers"]}
    usable = verdicts["overlay"] != "unusable"
    assert usable == OVERLAY_WORKS[kind], told
    if usable:
        assert told["choice"] == "overlay"
        assert engine.ok("run", "--rm", greeting, "cat", "three") == "three\n"
    else:
        refusal = next(d for d in told["drivers"] if d["name"] == "overlay")
        assert any(r["remedy"] for r in refusal["reasons"])
        done = engine("run", "--rm", greeting, "true")
        assert done.returncode == 125, "copy is POOR and never chosen silently"
        assert b"copy" in done.stderr
        engine.driver = "copy"
        assert engine.ok("run", "--rm", greeting, "cat", "three") == "three\n"
    engine.close()
    engine.driver = None
