"""Mounts: options, propagation, identities, what is bound (config.md, Mounts)."""

import os
import subprocess
from pathlib import Path

import pytest
from cowshed_testing import kernels

from cowshed_linux import mount
from cowshed_runtime import spec
from cowshed_runtime.options import Options


def add(box, destination: str, *options: str, **entry) -> None:
    box.config["mounts"].append({"destination": destination, "options": list(options), **entry})


def found(box, *paths: str) -> list[str]:
    """Lines of mountinfo for mount points of the container."""
    lines = {line.split()[4]: line for line in box.sh("cat /proc/self/mountinfo").out.splitlines()}
    return [lines[path] for path in paths]


# (option, of the mount (True) or of the file system, what mountinfo says, what it says if it is taken back)
ATTRIBUTES = [
    ("ro", "rw"), ("nosuid", "suid"), ("nodev", "dev"), ("noexec", "exec"), ("noatime", "atime"),
    ("nodiratime", "diratime"), ("nosymfollow", "symfollow"), ("relatime", "strictatime"),
]  # fmt: skip


@pytest.mark.parametrize(("word", "opposite"), ATTRIBUTES)
def test_attributes_of_a_mount(box, word, opposite):
    """Each alone, taken back by its opposite, and for bind mounts too; the last one counts."""
    (box.folder / "source").mkdir()
    add(box, "/one", word, type="tmpfs")
    add(box, "/two", word, opposite, type="tmpfs")
    add(box, "/three", "bind", opposite, word, type="none", source=str(box.folder / "source"))
    one, two, three = (line.split()[5].split(",") for line in found(box, "/one", "/two", "/three"))
    assert word in one
    assert word not in two
    assert word in three


def test_strict_access_times(box):
    add(box, "/one", "strictatime", type="tmpfs")
    add(box, "/two", "strictatime", "nostrictatime", type="tmpfs")
    one, two = found(box, "/one", "/two")
    assert "relatime" not in one
    assert "relatime" in two


@pytest.mark.parametrize("word", ["sync", "dirsync", "lazytime", "mand"])
def test_options_of_a_file_system(box, word):
    add(box, "/one", word, type="tmpfs")
    opposite = {"sync": "async", "lazytime": "nolazytime", "mand": "nomand"}.get(word)
    add(box, "/two", word, *([opposite] if opposite else []), type="tmpfs")
    one, two = (line.partition(" - ")[2] for line in found(box, "/one", "/two"))
    assert word in one.split()[2].split(",")
    assert (word in two.split()[2].split(",")) is not bool(opposite)


def test_options_that_change_nothing_to_see(box):
    words = ("defaults", "async", "loud", "silent", "nolazytime", "noiversion", "nomand", "norelatime")
    add(box, "/one", *words, type="tmpfs", source="named")
    assert " - tmpfs named rw" in found(box, "/one")[0]


def test_changes_of_files_are_counted(box):
    """`iversion`, which only mount(2) knows: the other attributes stay."""
    add(box, "/one", "iversion", "nosuid", "noatime", "size=64k", type="tmpfs")
    (line,) = found(box, "/one")
    assert {"nosuid", "noatime"} <= {*line.split()[5].split(",")}
    assert "size=64k" in line


def test_options_of_the_file_system_itself(box):
    add(box, "/one", "size=128k", "mode=0750", "nr_inodes=77", "uid=5", type="tmpfs")
    (line,) = found(box, "/one")
    for word in ("size=128k", "mode=750", "nr_inodes=77", "uid=5"):
        assert word in line
    add(box, "/two", "nonesuch=1", type="tmpfs")
    assert "nonesuch" in str(box.refused())


def test_every_word_of_the_specification_is_known():
    words = """async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev nodiratime
        noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev
        rdiratime relatime remount rexec rnoatime rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow ro
        rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared silent slave
        strictatime suid symfollow sync tmpcopyup unbindable idmap ridmap"""
    assert Options(words.split()).data == []


def test_a_relative_destination_is_relative_to_the_root(box):
    add(box, "data/here", type="tmpfs")
    assert "/data/here" in found(box, "/data/here")[0]


def test_mounts_are_made_in_the_order_given(box):
    (box.folder / "source").mkdir()
    (box.folder / "source/file").write_text("1")
    add(box, "/a", type="tmpfs")
    add(box, "/a/b", "bind", source=str(box.folder / "source"))
    add(box, "/hidden/b", "bind", source=str(box.folder / "source"))
    add(box, "/hidden", type="tmpfs")
    assert box.sh("ls /a/b /hidden").out.split() == ["/a/b:", "file", "/hidden:"]


def test_relative_sources_are_of_the_bundle(box):
    (box.folder / "below").mkdir()
    (box.folder / "below/file").write_text("1")
    add(box, "/data", "bind", source="below")
    assert box.sh("ls /data").out == "file\n"


def test_a_root_that_is_relative_to_the_bundle(box):
    box.by_path = True
    box.config["root"]["path"] = "rootfs"
    assert "busybox" in box.sh("ls /bin").out
    box.config["root"]["path"] = "none"
    assert f"root {box.folder}/none: No such file" in str(box.refused())


def test_recursive_attributes(box):
    """`rro` and its like reach what is mounted below; `ro` does not."""
    outer = box.folder / "outer"
    (outer / "inner").mkdir(parents=True)
    mount.mount("none", str(outer / "inner"), "tmpfs")
    try:
        words = ("rro", "rnosuid", "rnodev", "rnoexec", "rnoatime", "rnodiratime", "rnosymfollow")
        add(box, "/all", "rbind", *words, source=str(outer))
        add(box, "/taken", "rbind", "rro", "rrw", "rnoexec", "rexec", "rnoatime", "rstrictatime", source=str(outer))
        add(box, "/top", "rbind", "ro", source=str(outer))
        every, taken, top, above = (
            {*line.split()[5].split(",")} for line in found(box, "/all/inner", "/taken/inner", "/top/inner", "/top")
        )
        assert {word[1:] for word in words} <= every
        assert not {"ro", "noexec", "noatime", "relatime"} & taken
        assert "ro" not in top
        assert "ro" in above
    finally:
        mount.unmount(str(outer / "inner"))


def test_bind_is_of_one_mount_and_rbind_of_all(box):
    outer = box.folder / "outer"
    (outer / "inner").mkdir(parents=True)
    mount.mount("none", str(outer / "inner"), "tmpfs")
    try:
        (outer / "inner/there").write_text("")
        add(box, "/one", "bind", source=str(outer))
        add(box, "/all", "rbind", source=str(outer))
        assert box.sh("ls /one/inner | wc -l; ls /all/inner | wc -l").out.split() == ["0", "1"]
    finally:
        mount.unmount(str(outer / "inner"))


@pytest.fixture
def shared(box):
    """A shared mount of the host, that containers may have a part in."""
    folder = box.folder / "shared"
    folder.mkdir()
    mount.mount("none", str(folder), "tmpfs")
    mount.mount(None, str(folder), None, mount.SHARED)
    for name in ("host", "mine"):
        (folder / name).mkdir()
    try:
        yield folder
    finally:
        mount.unmount(str(folder), mount.MNT_DETACH)


@pytest.mark.parametrize(
    ("word", "in_sees_out", "out_sees_in"),
    [("rprivate", False, False), ("private", False, False), ("rslave", True, False), ("slave", True, False),
     ("rshared", True, True), ("shared", True, True), ("runbindable", False, False), ("unbindable", False, False),
     ("", False, False)],
)  # fmt: skip
def test_propagation_of_a_mount(box, shared, word, in_sees_out, out_sees_in):
    add(box, "/data", "rbind", *([word] if word else []), source=str(shared))
    box.process["capabilities"] = {key: ["CAP_SYS_ADMIN"] for key in ("bounding", "effective", "permitted")}
    os.mkfifo(box.rootfs / "tmp/go")
    script = "mount -t tmpfs none /data/mine; echo up; read x < /tmp/go; cat /proc/self/mountinfo"
    started = box.start("/bin/sh", "-c", script)
    assert started.line() == "up"
    mount.mount("none", str(shared / "host"), "tmpfs")
    with open("/proc/self/mountinfo") as f:
        assert (f" {shared}/mine " in f.read()) is out_sees_in
    (box.rootfs / "tmp/go").write_text("x\n")
    assert (" /data/host " in started.read()[0]) is in_sees_out


def test_a_user_namespace_shares_no_mounts_with_the_host(box, shared):
    """`rshared` there makes a group of its own: what the container mounts is its own affair."""
    box.in_user_namespace()
    add(box, "/data", "rbind", "rshared", source=str(shared))
    box.process["capabilities"] = {key: ["CAP_SYS_ADMIN"] for key in ("bounding", "effective", "permitted")}
    done = box.sh("mount -t tmpfs none /data/mine; cat /proc/self/mountinfo")
    line = next(line for line in done.out.splitlines() if " /data " in line)
    assert "shared:" in line
    assert "master:" in line
    assert " /data/mine " in done.out
    assert f" {shared}/mine " not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize(
    ("word", "fields"),
    [("shared", {"shared"}), ("rshared", {"shared"}), ("slave", {"master"}), ("rslave", {"master"}),
     ("private", set()), ("rprivate", set()), ("unbindable", {"unbindable"}), ("runbindable", {"unbindable"})],
)  # fmt: skip
def test_propagation_of_the_root(box, shared, word, fields):
    mount.mount(str(box.rootfs), str(box.rootfs), None, mount.BIND)
    mount.mount(None, str(box.rootfs), None, mount.SHARED)
    try:
        box.linux["rootfsPropagation"] = word
        (line,) = found(box, "/")
        optional = line.partition(" - ")[0].split()[6:]
        assert {field.partition(":")[0] for field in optional} == fields
        if fields == {"shared"}:
            group = optional[0].partition(":")[2]
            host = next(o for o in Path("/proc/self/mountinfo").read_text().splitlines() if f" {box.rootfs} " in o)
            assert f"shared:{group} " not in host, "the container's root is a peer of the host's"
    finally:
        mount.unmount(str(box.rootfs), mount.MNT_DETACH)


def test_remount_changes_what_is_there(box):
    add(box, "/one", "size=64k", type="tmpfs", source="tmpfs")
    add(box, "/one", "remount", "ro", "nosuid", "size=128k", type="tmpfs", source="tmpfs")
    add(box, "/proc", "remount", "bind", "nosuid", "noexec", "nodev", "ro", type="proc")
    one, proc = found(box, "/one", "/proc")
    assert {"ro", "nosuid"} <= {*one.split()[5].split(",")}
    assert "size=128k" in one
    assert "ro" in proc.split()[5].split(",")


def test_a_read_only_file_system_with_mount_points_in_it(box):
    (box.folder / "source").mkdir()
    for entry in box.config["mounts"]:
        if entry["destination"] == "/dev":
            entry["options"].append("ro")
    add(box, "/ro", "ro", type="tmpfs")
    add(box, "/ro/below", "bind", source=str(box.folder / "source"))
    done = box.sh("stat -c %t:%T /dev/null; touch /ro/x /dev/x; touch /ro/below/y && echo written")
    assert done.out.split() == ["1:3", "written"]
    assert done.err.count("Read-only") == 2


def test_files_and_links_as_podman_binds_them(box):
    """copy-symlink, src-nofollow, dest-nofollow (crun.1)."""
    target, linked = box.folder / "target", box.folder / "linked"
    target.write_text("target")
    linked.symlink_to(target)
    (box.rootfs / "etc/there").write_text("image")
    (box.rootfs / "etc/to").symlink_to("there")
    (box.rootfs / "etc/other").symlink_to("there")
    add(box, "/etc/copied", "bind", "copy-symlink", source=str(linked))
    add(box, "/etc/plain", "bind", "copy-symlink", source=str(target))
    add(box, "/etc/bound", "bind", "src-nofollow", source=str(linked))
    add(box, "/etc/to", "bind", "dest-nofollow", source=str(target))
    done = box.sh(
        "readlink /etc/copied; cat /etc/plain; echo; readlink /etc/bound; cat /etc/to; echo; cat /etc/there; echo;"
        "cat /etc/other"
    )
    assert done.out.splitlines() == [str(target), "target", str(target), "target", "image", "image"], done


def test_a_copied_link_does_not_replace_another(box):
    (box.folder / "linked").symlink_to("/somewhere")
    (box.rootfs / "etc/copied").symlink_to("/elsewhere")
    add(box, "/etc/copied", "bind", "copy-symlink", source=str(box.folder / "linked"))
    assert "File exists" in str(box.refused())


@pytest.fixture
def owned(box):
    """Files of two users, with a mount below."""
    kernels.needs(6, 3, "a tmpfs takes no maps of identities before")
    folder = box.folder / "owned"
    (folder / "below").mkdir(parents=True)
    mount.mount("none", str(folder / "below"), "tmpfs")
    for path in (folder / "zero", folder / "thousand", folder / "below/zero"):
        path.write_text("")
    os.chown(folder / "thousand", 1000, 1000)
    try:
        yield folder
    finally:
        mount.unmount(str(folder / "below"), mount.MNT_DETACH)


SHOW = "stat -c '%u:%g' /data/zero /data/thousand /data/below/zero"


def own(first: int) -> dict:
    return {key: [{"containerID": 0, "hostID": first, "size": 65536}] for key in ("uidMappings", "gidMappings")}


def test_a_mount_with_identities_of_its_own(box, owned):
    """Without a user namespace; `idmap` shifts one mount, `ridmap` those below too."""
    add(box, "/data", "rbind", "idmap", source=str(owned), **own(5000))
    assert box.sh(SHOW).out.split() == ["5000:5000", "6000:6000", "0:0"]
    box.config["mounts"].pop()
    add(box, "/data", "bind", source=str(owned), **own(5000))  # the word itself can be missing
    assert box.sh(SHOW).out.split()[:2] == ["5000:5000", "6000:6000"]
    box.config["mounts"].pop()
    add(box, "/data", "rbind", "ridmap", source=str(owned), **own(5000))
    done = box.sh(SHOW + "; touch /data/made")
    assert done.out.split() == ["5000:5000", "6000:6000", "5000:5000"]


def test_a_mount_with_the_identities_of_the_container(box, owned):
    """What belongs to root on the disk belongs to the container's root, and what that makes, to root on the disk."""
    box.in_user_namespace()
    add(box, "/data", "rbind", "ridmap", source=str(owned))
    add(box, "/as-is", "rbind", source=str(owned))
    done = box.sh(SHOW + "; touch /data/made; stat -c %u /as-is/zero")
    assert done.out.split() == ["0:0", "1000:1000", "0:0", "65534"]
    assert (owned / "made").stat().st_uid == 0


def test_a_mount_with_the_identities_of_a_namespace_by_path(box, owned):
    from cowshed_runtime.cgroup.group import Group

    box.in_user_namespace()
    first = box.start("/bin/sleep", "60")
    box.group, group = Group(box.group.name + "b"), box.group
    box.linux["namespaces"][-1] = {"type": "user", "path": f"/proc/{first.pid}/ns/user"}
    del box.linux["uidMappings"], box.linux["gidMappings"]
    add(box, "/data", "rbind", "ridmap", source=str(owned))
    try:
        assert box.sh(SHOW).out.split() == ["0:0", "1000:1000", "0:0"]
    finally:
        group.remove()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"options": ["bind", "idmap"]}, "idmap needs uidMappings and gidMappings"),
        ({"options": ["bind", "idmap"], "uidMappings": own(5)["uidMappings"]}, "belong together"),
        ({"type": "tmpfs", "options": ["idmap"], **own(5)}, "only of a bind mount"),
        ({"options": ["bind", ""]}, "must not be empty"),
        ({"options": ["bind"], "destination": "/a/../b"}, "must not contain `..`"),
    ],
)
def test_rules_of_mounts(box, entry, said):
    box.process["args"] = ["true"]
    box.config["mounts"].append({"destination": "/data", "source": "/", **entry})
    assert said in "; ".join(map(str, spec.validate(box.config)))


def test_a_file_system_that_does_not_shift_identities(box):
    add(box, "/data", "bind", "idmap", source="/proc/sys", **own(5))
    assert "with its identities shifted" in str(box.refused())


def test_a_file_system_on_a_device(box, tmp_path):
    image = tmp_path / "image"
    with open(image, "wb") as f:
        f.truncate(8 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        device = subprocess.run(
            ["losetup", "-f", "--show", str(image)], check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs mkfs.ext4 and a loop device: {error}")
    try:
        add(box, "/data", "ro", "errors=continue", type="ext4", source=device)
        (line,) = found(box, "/data")
        assert " - ext4 " in line
        assert line.split(" - ")[1].split()[2].split(",")[0] == "ro", "the file system itself can be written"
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def test_device_nodes_outside_dev(box):
    box.linux["devices"] = [
        {"path": "/srv/block", "type": "b", "major": 7, "minor": 200, "fileMode": 0o600, "uid": 3, "gid": 4},
        {"path": "/srv/unbuffered", "type": "u", "major": 1, "minor": 3},
        {"path": "/srv/fifo", "type": "p", "fileMode": 0o622, "uid": 9},
    ]
    done = box.sh("stat -c '%F %t:%T %a %u:%g' /srv/block /srv/unbuffered /srv/fifo")
    assert done.out.splitlines() == [
        "block special file 7:c8 600 3:4", "character special file 1:3 666 0:0", "fifo 0:0 622 9:0",
    ]  # fmt: skip


def test_another_file_at_the_place_of_a_device(box):
    (box.rootfs / "srv").mkdir()
    (box.rootfs / "srv/node").write_text("")
    box.linux["devices"] = [{"path": "/srv/node", "type": "c", "major": 1, "minor": 3}]
    assert "the image has another /srv/node" in str(box.refused())


def test_devices_of_a_dev_of_the_host(box):
    box.config["mounts"] = [entry for entry in box.config["mounts"] if not entry["destination"].startswith("/dev")]
    add(box, "/dev", "rbind", "rslave", source="/dev")
    before = sorted(os.listdir("/dev"))
    assert box.sh("stat -c %t:%T /dev/zero").out == "1:5\n"
    assert sorted(os.listdir("/dev")) == before
