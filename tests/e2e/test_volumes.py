"""Volumes as a user handles them: named, anonymous, filled from the image, listed, pruned."""

import json
import os

import pytest

pytestmark = pytest.mark.usefixtures("empty")


@pytest.fixture
def empty(shop):
    yield
    for name in shop.ok("ps", "-aq").split():
        shop.ok("rm", "-f", name)
    shop.ok("volume", "prune", "-af")
    assert os.listdir(shop.root / "volumes") == []


def names(shop, *words):
    return shop.ok("volume", "ls", "-q", *words).split()


def sh(shop, *words):
    *options, script = words
    return shop.ok("run", "--rm", *options, shop.image, "sh", "-c", script)


def test_a_named_volume_outlives_its_containers(shop):
    assert sh(shop, "-v", "kept:/srv", "ls; echo more > more").split() == ["one", "three"], "filled from the image"
    assert sh(shop, "-v", "kept:/elsewhere:ro", "cat /elsewhere/more; touch /elsewhere/x || echo refused").split() == [
        "more", "refused",
    ]  # fmt: skip
    assert names(shop) == ["kept"]


def test_a_volume_made_first_is_filled_too_unless_told_not_to(shop):
    assert shop.ok("volume", "create", "--label", "a=b", "made").strip() == "made"
    told = json.loads(shop.ok("volume", "inspect", "made"))[0]
    assert told["Labels"] == {"a": "b"}
    assert os.path.isdir(told["Mountpoint"])
    assert sh(shop, "-v", "made:/srv", "ls").split() == ["one", "three"]
    assert sh(shop, "-v", "bare:/srv:nocopy", "ls") == ""
    assert sh(shop, "--mount", "type=volume,src=made,dst=/x,readonly", "ls /x").split() == ["one", "three"]


def test_anonymous_volumes_go_with_their_container(shop):
    sh(shop, "-v", "/cache", "touch /cache/x")
    assert names(shop) == []
    shop.ok("create", "--name", "keeper", "-v", "/cache", shop.image, "true")
    assert len(names(shop)) == 1
    shop.ok("rm", "keeper")
    assert len(names(shop, "-f", "dangling=true")) == 1
    shop.ok("create", "--name", "keeper", "-v", "/cache", shop.image, "true")
    shop.ok("rm", "-v", "keeper")
    assert len(names(shop)) == 1
    assert shop.ok("volume", "prune", "-f").startswith("Deleted Volumes:")
    assert names(shop) == []


def test_a_volume_in_use_stays(shop):
    shop.ok("create", "--name", "user", "-v", "used:/data", shop.image, "true")
    done = shop("volume", "rm", "used", "absent")
    assert done.returncode == 1
    assert b"used by the container user" in done.stderr
    assert b"no such volume: absent" in done.stderr
    shop.ok("volume", "prune", "-af")
    assert names(shop) == ["used"]
    shop.ok("volume", "rm", "-f", "absent")
    shop.ok("rm", "user")
    assert shop.ok("volume", "rm", "used").strip() == "used"


def test_listing_and_filters(shop):
    for name, label in (("one", "k=1"), ("two", "k=2")):
        shop.ok("volume", "create", "--label", label, name)
    assert names(shop, "-f", "label=k=2") == ["two"]
    assert names(shop, "-f", "label=k", "-f", "name=on") == ["one"]
    assert shop.ok("volume", "ls", "--format", '{{.Name}} {{.Label "k"}}').splitlines() == ["one 1", "two 2"]
    assert shop("volume", "ls", "-f", "color=red").returncode == 125
    assert shop("volume", "create", "../x").returncode == 125


def test_system_prune_takes_what_nobody_uses(shop):
    shop.ok("create", "--name", "idle", "-v", "/cache", shop.image, "true")
    shop.ok("run", "-d", "--name", "busy", shop.image, "sleep", "1000")
    assert shop("system", "prune", feed=b"n\n").returncode == 0
    assert set(shop.names()) == {"idle", "busy"}
    shop.ok("system", "prune", "-f", "--volumes")
    assert shop.names() == ["busy"]
    assert names(shop) == []
    assert shop.ok("container", "prune", "-f") == "Total reclaimed space: 0B\n"
