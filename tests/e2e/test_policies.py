"""Pruning by policy, shown before it is done: `image prune`, `container prune`, `storage gc`."""

import hashlib
import json
import os
import random
from pathlib import Path

import pytest
from cowshed_testing.images import Image, LayerTar, busybox_layer

from cowshed_linux import process


@pytest.fixture
def driver():
    return "overlay"


@pytest.fixture(scope="module")
def tags(registry):
    """Three images of one repository and one of another, on one base; each has 1 MB of its own that does not shrink."""
    base, dice = busybox_layer(), random.Random(1)
    return [
        registry.push(Image([base, LayerTar().file("own", dice.randbytes(1_000_000)).bytes()]), *name.split(":"))
        for name in ("policy/app:1", "policy/app:2", "policy/app:3", "policy/other:1")
    ]


@pytest.fixture
def stocked(engine, tags):
    for image in tags:
        engine.ok("pull", "-q", image)
    engine.tags = tags
    return engine


def held(engine):
    return set(engine.ok("images", "--format", "{{.Repository}}:{{.Tag}}").split())


def sizes(engine):
    rows = [json.loads(line) for line in engine.ok("storage", "df", "--format", "json").splitlines()]
    return {row["Name"] or row["Type"]: row["OwnBytes"] for row in rows}


def test_the_last_of_each_repository_stay(stocked):
    first, second, third, other = stocked.tags
    words = ("image", "prune", "-a", "--keep-last", "1")
    dry = stocked.ok(*words, "--dry-run")
    assert dry.splitlines()[:4] == ["Would delete Images:", first, second, ""]
    assert dry.splitlines()[4].startswith("Would reclaim about 4.")
    assert stocked.ok(*words, "--dry-run", "-f") == dry
    assert held(stocked) == set(stocked.tags)
    asked = stocked(*words, feed=b"n\n")
    assert (asked.returncode, asked.stdout) == (0, b"")
    assert dry.splitlines()[:5] == asked.stderr.decode().splitlines()[:5]
    assert asked.stderr.endswith(b"Are you sure you want to continue? [y/N] ")
    assert held(stocked) == set(stocked.tags)
    done = stocked(*words, feed=b"y\n")
    assert f"untagged: {first}\nuntagged: {second}\n" in done.stdout.decode()
    assert held(stocked) == {third, other}
    assert stocked.ok(*words, "--dry-run") == "There is nothing to remove\n"
    assert stocked.ok("system", "check") == "clean\n"


def test_the_oldest_go_until_images_are_small_and_those_in_use_stay(stocked):
    first, second, third, other = stocked.tags
    stocked.ok("create", "--name", "box", first, "true")
    before = sizes(stocked)
    taken = sum(size for name, size in before.items() if name != "box")
    most = taken - before[second] - 1
    stocked.ok("image", "prune", "-a", "-f", "--max-size", str(most))
    assert held(stocked) == {first, other}, "the first one is in use: the next two had to go"
    assert sum(size for name, size in sizes(stocked).items() if name != "box") <= most
    stocked.ok("image", "prune", "-a", "-f", "--max-size", "1t")
    assert held(stocked) == {first, other}
    stocked.ok("image", "prune", "-f", "--max-size", "0")
    assert held(stocked) == {first, other}, "without -a only those without a name go"
    assert third not in held(stocked)


def test_filters_and_policies_are_taken_together(stocked):
    words = ("image", "prune", "-a", "-f", "--keep-last", "0")
    stocked.ok(*words, "--filter", "label=nobody=has")
    assert held(stocked) == set(stocked.tags)
    stocked.ok(*words)
    assert held(stocked) == set()
    wrong = stocked("image", "prune", "--keep-last", "-1")
    assert (wrong.returncode, b"--keep-last is how many stay, not -1" in wrong.stderr) == (125, True)


def test_containers_by_number_and_size(stocked):
    image = stocked.tags[0]
    for n in range(3):
        stocked.ok("run", "--name", f"box-{n}", image, "dd", "if=/dev/urandom", "of=/data", "bs=1000000", "count=1")
    stocked.ok("run", "-d", "--name", "runs", image, "sleep", "600")
    dry = stocked.ok("container", "prune", "--keep-last", "1", "--dry-run").splitlines()
    assert dry[:4] == ["Would delete Containers:", "box-0", "box-1", ""]
    assert dry[4].startswith("Would reclaim about 2")
    assert len(stocked.names()) == 4
    stocked.ok("container", "prune", "-f", "--max-size", "2.5m")
    assert sorted(stocked.names()) == ["box-1", "box-2", "runs"]
    stocked.ok("container", "prune", "-f", "--keep-last", "1")
    assert sorted(stocked.names()) == ["box-2", "runs"]
    stocked.ok("container", "prune", "-f", "--max-size", "0")
    assert stocked.names() == ["runs"]


def test_gc_shows_and_removes_what_nobody_needs_and_no_more(stocked):
    stocked.ok("create", "--name", "box", stocked.tags[0], "true")
    assert stocked.ok("storage", "gc", "--dry-run") == "There is nothing to remove\n"
    objects = stocked.root / "drivers/overlay"
    (objects / "committed" / ("f" * 32)).mkdir()
    (objects / "trash" / ("e" * 32)).mkdir()
    blob = b"nobody lists this" * 1000
    digest = hashlib.sha256(blob).hexdigest()
    (stocked.root / "blobs/sha256" / digest).write_bytes(blob)
    dry = stocked.ok("storage", "gc", "--dry-run").splitlines()
    assert dry == [
        "Would delete Archives:", f"sha256:{digest}", "", "Would delete Orphans:", f"overlay {'f' * 32}", "",
        "Would delete Objects:", "overlay: 1 that wait for their deletion", "", "Would reclaim about 17kB",
    ]  # fmt: skip
    assert (stocked.root / "blobs/sha256" / digest).exists()
    done = stocked("storage", "gc", feed=b"y\n").stdout.decode()
    assert done.splitlines()[-1] == "Total reclaimed space: 17kB"
    assert not (stocked.root / "blobs/sha256" / digest).exists()
    assert os.listdir(objects / "trash") == []
    assert len(os.listdir(objects / "committed")) == 5
    assert held(stocked) == set(stocked.tags)
    assert stocked.ok("system", "check", "--deep") == "clean\n"


@pytest.mark.parametrize("words", [("storage", "gc", "-f"), ("system", "prune", "-f")])
def test_what_nothing_claims_of_the_run_directory_goes(stocked, words):
    stocked.ok("run", "--name", "box", stocked.tags[0], "true")
    places = Path(stocked.run_directory()) / "c"
    old, young, lives = (places / (digit * 32) for digit in "012")
    copy = stocked.run_root / "stale.4194305"  # larger than any pid
    for path in (old, young, lives, copy):
        path.mkdir()
    (lives / "pid").write_text(f"{os.getpid()} {process.start_time(os.getpid())} 1")
    for path in (old, lives):
        os.utime(path, (0, 0))
    kept = sorted(os.listdir(places))
    dry = stocked.ok("storage", "gc", "--dry-run").splitlines()
    assert dry == ["Would delete Remains:", f"{copy} a copy of a database", f"{old} of no container", "",
                   "Would reclaim about 0B"]  # fmt: skip
    assert sorted(os.listdir(places)) == kept
    box = next(name for name in kept if name not in (old.name, young.name, lives.name))
    stocked.ok("rm", "box")
    kept.remove(box)
    stocked.ok(*words)
    assert sorted(os.listdir(places)) == [name for name in kept if name != old.name]
    assert not copy.exists()
    told = stocked("storage", "check").stdout.decode()
    assert (
        f"c/{lives.name}, which is of no container, and process {os.getpid()} of it lives: kill {os.getpid()}" in told
    )
    repaired = stocked("storage", "repair", "-f").stdout.decode()
    assert "cannot be repaired: the run directory has c/" in repaired
    assert sorted(os.listdir(places)) == [name for name in kept if name not in (old.name, young.name)]


def test_gc_by_policy_takes_images_that_no_container_uses(stocked):
    first, second, third, other = stocked.tags
    stocked.ok("create", "--name", "box", second, "true")
    before = sizes(stocked)
    most = sum(before.values()) - 1
    dry = stocked.ok("storage", "gc", "--max-size", str(most), "--dry-run")
    assert dry.splitlines()[:2] == ["Would delete Images:", first]
    stocked.ok("storage", "gc", "-f", "--max-size", str(most))
    assert held(stocked) == {second, third, other}
    stocked.ok("storage", "gc", "-f", "--keep-last", "1")
    assert held(stocked) == {second, third, other}, "one of each repository, and one in use"
    stocked.ok("storage", "gc", "-f", "--max-size", "0")
    assert held(stocked) == {second}
    assert stocked.ok("storage", "gc", "-f") == "Total reclaimed space: 0B\n"
    assert stocked.ok("system", "check", "--deep") == "clean\n"
