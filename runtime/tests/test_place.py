"""Where the groups of a container are, and whose they are."""

import os
import pwd
import uuid

import pytest

from cowshed_runtime.cgroup import layout, ownership, place
from cowshed_runtime.cgroup.files import read
from cowshed_runtime.cgroup.group import Group
from cowshed_runtime.errors import SpecError


def locate(path, **options):
    config = {"linux": {"cgroupsPath": path}} if path is not None else {}
    return place.locate(config, "box", **options)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (None, "/cowshed/box"),
        ("", "/cowshed/box"),
        ("/a/b", "/a/b"),
        ("//a/./b/", "/a/b"),
        ("a/b", "/cowshed/a/b"),
        ("slice:pre:name", "/cowshed/slice:pre:name"),
    ],
)
def test_paths(path, wanted):
    assert locate(path).path == wanted


@pytest.mark.parametrize("path", ["..", "/a/../b", "a/..", "/", "//", "./", "a\0b"])
def test_paths_that_lead_elsewhere_are_refused(path):
    with pytest.raises(SpecError, match="cgroupsPath"):
        locate(path)


def tree(tmp_path, *, beside=True, own=True, monkeypatch):
    """A hierarchy of version 2 in which this process is at /user/session."""
    folder = tmp_path / "user/session"
    folder.mkdir(parents=True)
    for at in (tmp_path, tmp_path / "user", folder):
        (at / "cgroup.procs").touch()
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")
    closed = [tmp_path] + [tmp_path / "user"] * (not beside) + [folder] * (not own)
    # Root may write anything: what it may not is told here.
    monkeypatch.setattr(place, "_writable", lambda at: at[:3] != "/v1" and os.path.normpath(at) not in map(str, closed))
    monkeypatch.setattr(place, "read", lambda path: "1:memory:/x\n0::/user/session\n")
    return layout.Layout(f"1 1 0:1 / {tmp_path} rw - cgroup2 cgroup2 rw\n2 1 0:2 / /v1 rw - cgroup cgroup rw,cpu")


def test_a_plain_user_gets_a_group_beside_his_own(tmp_path, monkeypatch):
    within = tree(tmp_path, monkeypatch=monkeypatch)
    group = locate(None, rootless=True, within=within)
    assert (group.path, list(group.layout.hierarchies())) == ("/user/cowshed/box", [str(tmp_path)])
    assert locate("given", rootless=True, within=within).path == "/user/cowshed/given"
    assert locate("/user/mine", rootless=True, within=within).layout.v2
    assert not locate("/other", rootless=True, within=within).layout.v2


def test_a_plain_user_gets_a_group_in_his_own_if_need_be(tmp_path, monkeypatch):
    group = locate(None, rootless=True, within=tree(tmp_path, beside=False, monkeypatch=monkeypatch))
    assert (group.path, group.layout.v2) == ("/user/session/cowshed/box", str(tmp_path))


def test_a_plain_user_without_delegation_has_no_groups_and_no_limits(tmp_path, monkeypatch):
    within = tree(tmp_path, beside=False, own=False, monkeypatch=monkeypatch)
    group = locate(None, rootless=True, within=within)
    assert list(group.directories()) == []
    group.create({"devices": [{"allow": False}]})
    assert group.processes() == []
    group.kill()
    group.remove()
    with pytest.raises(OSError, match="this user has been delegated no memory cgroup controller"):
        group.create({"memory": {"limit": 1}})


WRITABLE = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid"]}


def config(uid=7, *, cgroup=None, mount=WRITABLE, user=None):
    namespaces = [{"type": "cgroup", **(cgroup or {})}] if cgroup != "none" else []
    linux = {"namespaces": namespaces + ([{"type": "user"}] if user else []), "uidMappings": user or []}
    return {"process": {"user": {"uid": uid}}, "mounts": [mount], "linux": linux}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (config(), 7),
        (config(0), 0),
        (config(cgroup={"path": "/proc/1/ns/cgroup"}), None),
        (config(cgroup="none"), None),
        (config(mount={**WRITABLE, "options": ["ro"]}), None),
        (config(mount={**WRITABLE, "destination": "/elsewhere"}), None),
        (config(mount={**WRITABLE, "source": "other"}), None),
        (config(user=[{"containerID": 0, "hostID": 100000, "size": 10}]), 100007),
        (config(user=[{"containerID": 0, "hostID": 100000, "size": 5}]), None),
    ],
)
def test_whose_the_group_is(given, wanted):
    """config-linux.md, Cgroup ownership."""
    assert ownership.owner(given) == wanted


def only_v2():
    if layout.host.v1 or not layout.host.v2:
        pytest.skip("needs a host with cgroup version 2 alone")


def test_a_writable_group_is_given_to_the_containers_user(box):
    only_v2()
    box.process["user"] = {"uid": 1234, "gid": 1234}
    for mount in box.config["mounts"]:
        if mount["type"] == "cgroup":
            mount["options"] = ["nosuid"]
    done = box.sh(
        "cd /sys/fs/cgroup && mkdir mine && echo $$ > mine/cgroup.procs && cat /proc/self/cgroup; echo 1 > pids.max"
    )
    assert done.out == "0::/mine\n"
    assert "Permission denied" in done.err


def test_a_group_that_is_read_only_stays_the_runtimes(box):
    only_v2()
    box.process["user"] = {"uid": 1234, "gid": 1234}
    done = box.sh("stat -c %u /sys/fs/cgroup /sys/fs/cgroup/cgroup.procs")
    assert done.out.split() == ["0", "0"]


def test_the_container_can_have_a_group_below_its_own(box):
    """run.oci.delegate-cgroup (crun(1)): limits stand in the upper one, which the container sees as its root."""
    only_v2()
    box.config["annotations"] = {ownership.DELEGATE: "deleg/ate"}
    box.linux["resources"]["pids"] = {"limit": 50}
    first = box.start("/bin/sh", "-c", "cat /proc/self/cgroup /sys/fs/cgroup/pids.max; sleep 60")
    assert [first.line(), first.line()] == ["0::/deleg/ate", "50"]
    folder = f"{layout.host.v2}{box.group.path}"
    assert "pids" in read(f"{folder}/cgroup.subtree_control")
    assert box.group.processes()[0] == first.pid
    # The group itself takes no process any more, since it hands controllers down.
    assert box.exec(first, "cat", "/proc/self/cgroup").out == "0::/deleg/ate\n"


@pytest.mark.parametrize("below", ["../x", "/x", "a/../../b"])
def test_a_group_below_is_below(box, below):
    box.config["annotations"] = {ownership.DELEGATE: below}
    assert "without `..`" in str(box.refused())


def test_a_plain_user_with_a_delegated_directory(tmp_path):
    """As systemd delegates one: the directory and cgroup.procs, cgroup.subtree_control, cgroup.threads are his."""
    only_v2()
    nobody = pwd.getpwnam("nobody").pw_uid
    top = f"{layout.host.v2}/cowshed-test-{uuid.uuid4().hex}"
    os.makedirs(f"{top}/session")
    try:
        for folder in (top, f"{top}/session"):
            os.chown(folder, nobody, -1)
            for file in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
                os.chown(f"{folder}/{file}", nobody, -1)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with open(f"{top}/session/cgroup.procs", "w") as f:
                    f.write("0")
                os.setuid(nobody)
                group = locate(None, rootless=True)
                group.create({"devices": [{"allow": False}], "pids": {"limit": 5}})
                assert group.path.endswith("/cowshed/box"), group.path
                assert read(f"{group.find('pids')}/pids.max") == "5\n"
                group.remove()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        Group("top", top.removeprefix(layout.host.v2)).remove()
