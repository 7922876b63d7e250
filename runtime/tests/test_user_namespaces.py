"""User namespaces: identities, what is made for them and by whom (config-linux.md, User namespace mappings)."""

import os
from pathlib import Path

import pytest

from cowshed_linux import mount, process
from cowshed_runtime import mappings, spec
from cowshed_runtime.cgroup.group import Group


def test_root_of_a_user_namespace(box):
    box.in_user_namespace()
    first = box.start("/bin/sh", "-c", "id; cat /proc/self/uid_map /proc/self/gid_map; grep Cap /proc/self/status;"
                      "touch /made; stat -c '%u %g' /made; echo end; sleep 60")  # fmt: skip
    assert first.line() == "uid=0 gid=0"
    assert [first.line().split() for _ in range(2)] == [["0", "100000", "65536"]] * 2
    while (line := first.line()) != "0 0":
        assert "CapEff" not in line or int(line.split()[1], 16)
    assert first.line() == "end"
    outside = (box.rootfs / "made").stat()
    assert (outside.st_uid, outside.st_gid) == (100_000, 100_000)
    status = Path(f"/proc/{first.pid}/status").read_text()
    assert "Uid:\t100000\t100000\t100000\t100000" in status
    assert "Groups:\t \n" in status, "groups of who started it are left"
    assert os.readlink(f"/proc/{first.pid}/ns/user") != os.readlink("/proc/self/ns/user")
    box.group.kill()


def test_all_other_namespaces_belong_to_it(box):
    """Its root may do there what only the owner of a namespace may: set the name, mount, change the network."""
    box.in_user_namespace()
    names = ["CAP_SYS_ADMIN", "CAP_NET_ADMIN"]
    box.process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), names)
    done = box.sh("hostname other && hostname; mount -t tmpfs none /tmp && echo mounted; cat /sys/class/net/lo/flags")
    name, mounted, flags = done.out.split()
    assert (name, mounted) == ("other", "mounted"), done
    assert int(flags, 16) & 1, "lo is down"


def test_mounts_and_masks_are_there_in_a_user_namespace(box, tmp_path):
    folder = tmp_path / "private" / "folder"
    folder.mkdir(parents=True)
    (folder / "inside").write_text("seen")
    (tmp_path / "private").chmod(0o700)  # the container's root could not find it by itself
    box.in_user_namespace()
    box.config["mounts"].append(
        {"destination": "/mnt", "type": "bind", "source": str(folder), "options": ["bind", "ro"]}
    )
    done = box.sh("cat /mnt/inside; echo; touch /mnt/x; cat /proc/keys | wc -c; cat /proc/self/mountinfo; echo 9 >"
                  " /proc/sys/vm/swappiness")  # fmt: skip
    lines = done.out.splitlines()
    assert lines[:2] == ["seen", "0"], done
    found = {line.split()[4] for line in lines[2:]}
    assert {"/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup", "/mnt"} <= found
    assert done.err.count("Read-only") == 2, done.err


def test_devices_are_those_of_the_host(box):
    """mknod(2) is refused in a user namespace, so that they are bound (config-linux.md, Devices)."""
    box.in_user_namespace()
    box.linux["devices"] = [
        {"path": "/dev/other", "type": "c", "major": 1, "minor": 5},
        {"path": "/dev/fifo", "type": "p", "fileMode": 0o640},
    ]
    done = box.sh("head -c 4 /dev/zero | wc -c; echo x > /dev/null && stat -c '%n %t:%T' /dev/null /dev/tty /dev/other;"
                  "head -c 2 /dev/other | wc -c; stat -c '%F %a' /dev/fifo; readlink /dev/ptmx")  # fmt: skip
    assert done.out.splitlines() == [
        "4", "/dev/null 1:3", "/dev/tty 5:0", "/dev/other 1:5", "2", "fifo 640", "pts/ptmx",
    ], done  # fmt: skip


def test_a_device_that_the_host_lacks(box):
    box.in_user_namespace()
    box.linux["devices"] = [{"path": "/dev/lacking", "type": "c", "major": 4000, "minor": 1}]
    assert "the host has no node for 4000:1" in str(box.refused())


def test_terminal_in_a_user_namespace(box):
    box.in_user_namespace()
    box.process["terminal"] = True
    started = box.start("/bin/sh", "-c", "tty; test -t 1 && stat -c '%t:%T %u' /dev/console; echo end")
    seen = b""
    while b"end" not in seen:
        seen += os.read(started.terminal, 4096)
    assert seen.decode().split() == ["/dev/pts/0", "88:0", "0", "end"]
    assert started.wait() == 0


def test_a_user_of_the_namespace_owns_his_output(box):
    box.in_user_namespace()
    box.process["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [5]}
    done = box.sh("id; echo again > /dev/stdout")
    assert done.out.splitlines() == ["uid=1000 gid=1000 groups=5", "again"], done


def test_many_mappings(box):
    box.in_user_namespace()
    extents = [{"containerID": n, "hostID": 100_000 + n, "size": 1} for n in range(100)]
    box.linux["uidMappings"] = extents
    done = box.sh("wc -l < /proc/self/uid_map")
    assert done.out.strip() == "100"


def test_a_namespace_without_a_root(box):
    """Nobody in it is 0: what has to be set up is done by its first identity."""
    box.in_user_namespace()
    for key in ("uidMappings", "gidMappings"):
        box.linux[key] = [{"containerID": 1000, "hostID": 100_000, "size": 10}]
    box.process["user"] = {"uid": 1001, "gid": 1002}
    for entry in box.config["mounts"]:
        entry["options"] = [word for word in entry["options"] if word != "gid=5"]
    assert box.sh("id").out == "uid=1001 gid=1002\n"


def test_oom_score_from_outside(box):
    box.in_user_namespace()
    box.process["oomScoreAdj"] = 300
    assert box.sh("cat /proc/self/oom_score_adj").out == "300\n"


def test_hooks_run_outside_as_who_starts_the_container(box):
    box.in_user_namespace()
    hook = box.folder / "hook"
    hook.write_text(f"#!/bin/sh\nreadlink /proc/self/ns/user >> {box.folder}/said\nid -u >> {box.folder}/said\n")
    hook.chmod(0o755)
    box.config["hooks"] = {kind: [{"path": str(hook)}] for kind in ("prestart", "createRuntime", "poststart")}
    assert box.sh("exit 0").status == 0
    assert (box.folder / "said").read_text().split() == [os.readlink("/proc/self/ns/user"), "0"] * 3


def test_exec_into_a_user_namespace(box):
    box.in_user_namespace()
    first = box.start("/bin/sh", "-c", "echo up; sleep 60")
    first.line()
    done = box.exec(first, "/bin/sh", "-c", "id -u; readlink /proc/self/ns/user; readlink /proc/1/ns/user; touch /by")
    user, own, other = done.out.split()
    assert (user, own) == ("0", other)
    assert (box.rootfs / "by").stat().st_uid == 100_000
    done = box.exec(first, "/bin/sh", "-c", "echo x > /dev/stdout; id -u", user={"uid": 7, "gid": 7})
    assert done.out.split() == ["x", "7"], done
    box.group.kill()


def test_a_user_namespace_by_path(box):
    """With new namespaces that belong to it; its first process is one of two containers."""
    box.in_user_namespace()
    first = box.start("/bin/sleep", "60")
    box.group, group = Group(box.group.name + "b"), box.group
    box.linux["namespaces"] = [
        {"type": kind} if kind != "user" else {"type": kind, "path": f"/proc/{first.pid}/ns/user"}
        for kind in ("pid", "ipc", "uts", "mount", "network", "cgroup", "user", "time")
    ]
    del box.linux["uidMappings"], box.linux["gidMappings"]
    box.process["capabilities"] = {key: ["CAP_SYS_ADMIN"] for key in ("bounding", "effective", "permitted")}
    try:
        done = box.sh("echo $$; readlink /proc/self/ns/user; hostname mine && hostname; id -u")
        assert done.out.split() == ["1", os.readlink(f"/proc/{first.pid}/ns/user"), "mine", "0"], done
    finally:
        group.remove()


def test_a_new_user_namespace_with_namespaces_of_others(box):
    """As a pod's: the network is the host's to give, and is joined before the user namespace is entered."""
    other = box.start("/bin/sleep", "60")
    box.group, group = Group(box.group.name + "b"), box.group
    box.in_user_namespace()
    paths = {"network": "net", "ipc": "ipc", "uts": "uts"}
    for entry in box.linux["namespaces"]:
        if entry["type"] in paths:
            entry["path"] = f"/proc/{other.pid}/ns/{paths[entry['type']]}"
    del box.config["hostname"]
    box.config["mounts"] = [m for m in box.config["mounts"] if m["type"] not in ("mqueue",)]
    try:
        done = box.sh("readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; hostname; id -u; echo $$;"
                      "touch /sys/fs/cgroup/x /sys/kernel/x")  # fmt: skip
        links = [os.readlink(f"/proc/{other.pid}/ns/{name}") for name in ("net", "ipc")]
        assert done.out.split() == [*links, "box", "0", "1"], done
    finally:
        group.remove()


def test_its_own_user_namespace_by_path_is_no_change(box):
    box.linux["namespaces"].append({"type": "user", "path": "/proc/self/ns/user"})
    assert box.sh("readlink /proc/self/ns/user").out.strip() == os.readlink("/proc/self/ns/user")


def test_a_user_namespace_of_nobody(box):
    """Its maps were never written: nothing can be done in it."""
    read_end, write_end = os.pipe()
    pid, _ = process.clone3(process.CLONE_NEWUSER)
    if pid == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    try:
        box.linux["namespaces"].append({"type": "user", "path": f"/proc/{pid}/ns/user"})
        assert "has no identities" in str(box.refused())
    finally:
        os.close(read_end)
        os.close(write_end)
        os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"uidMappings": None}, "linux.uidMappings: is missing"),
        ({"gidMappings": [{"containerID": 0, "hostID": 5}]}, "linux.gidMappings[0].size: is missing"),
        ({"uidMappings": [{"containerID": 5, "hostID": 5, "size": 2}]}, "process.user: 0 is not in linux.uidMappings"),
        ({"uidMappings": [{"containerID": n, "hostID": 9 - n, "size": 2} for n in (0, 1)]}, "1 is mapped twice"),
        ({"uidMappings": [{"containerID": 0, "hostID": 2**32 - 2, "size": 2}]}, "more than there are"),
        ({"uidMappings": [{"containerID": n, "hostID": n, "size": 1} for n in range(341)]}, "the kernel keeps 340"),
        ({"namespaces": [{"type": "mount"}]}, "linux.uidMappings: needs a user namespace"),
        ({"namespaces": [{"type": "user"}]}, "needs a new mount namespace"),
        ({"namespaces": [{"type": "user"}, {"type": "mount"}, {"type": "user"}]}, "user is given twice"),
    ],
)
def test_what_cannot_be_mapped(box, change, said):
    box.in_user_namespace()
    box.config.pop("hostname")
    box.process["args"] = ["true"]
    box.linux.update(change)
    assert said in "; ".join(map(str, spec.validate(box.config)))


def test_ids_of_the_host():
    extents = mappings.extents(
        [{"containerID": 0, "hostID": 1000, "size": 1}, {"containerID": 1, "hostID": 5000, "size": 9}]
    )
    assert [mappings.outside(extents, n) for n in (0, 1, 9, 10)] == [1000, 5000, 5008, -1]


def test_a_namespace_for_a_mount_has_its_identities(box):
    fd = mappings.namespace([(0, 70_000, 10)], [(0, 80_000, 10)])
    tree = mount.clone(str(box.rootfs))
    try:
        mount.set_attributes(tree, mount.ATTR_IDMAP, userns=fd)
        there = os.stat("bin", dir_fd=tree)
        assert (there.st_uid, there.st_gid) == (70_000, 80_000)
    finally:
        os.close(fd)
        os.close(tree)
