"""AppArmor and SELinux: seen to confine, on kernels that run them (tests/vm/guests runs these)."""

import os
import subprocess
from pathlib import Path

import pytest

from cowshed_linux import libc, process
from cowshed_runtime import labels, launcher

pytestmark = pytest.mark.guest


# --- AppArmor

ONE, OTHER, OWN = "cowshed-one", "cowshed-other", "cowshed-launcher"
_RULES = "flags=(attach_disconnected,mediate_deleted) { file, capability, signal,"
PROFILES = f"""
profile {ONE} {_RULES} deny /srv/one r, }}
profile {OTHER} {_RULES} deny /srv/two r, }}
profile {OWN} {_RULES} mount, umount, pivot_root, network, ptrace, unix, change_profile, deny /srv/three r, }}
"""
TRIED = ("/bin/sh", "-c", "cat /srv/one /srv/two /srv/three; cat /proc/self/attr/apparmor/current")


@pytest.fixture(scope="module")
def profiles(tmp_path_factory):
    if not labels.apparmor():
        pytest.skip("this kernel runs no AppArmor")
    path = tmp_path_factory.mktemp("profiles") / "all"
    path.write_text(PROFILES)
    subprocess.run(["apparmor_parser", "-K", "-r", path], check=True, timeout=600)
    yield
    subprocess.run(["apparmor_parser", "-R", path], check=True, timeout=600)


@pytest.fixture
def shop(box):
    (box.rootfs / "srv").mkdir()
    for name in ("one", "two", "three"):
        (box.rootfs / "srv" / name).write_text(f"{name}\n")
    return box


@pytest.mark.parametrize("no_new_privileges", [False, True])
@pytest.mark.parametrize(
    ("profile", "seen"),
    [
        (ONE, ["two", "three", f"{ONE} (enforce)"]),
        (f"{ONE}//&{OTHER}", ["three", f"{ONE}//&{OTHER} (enforce)"]),
        ("unconfined", ["one", "two", "three", "unconfined"]),
    ],
)
def test_apparmor_denies(shop, profiles, profile, seen, no_new_privileges):
    shop.process.update(apparmorProfile=profile, noNewPrivileges=no_new_privileges, args=list(TRIED))
    assert shop.run(*TRIED).out.splitlines() == seen


def test_apparmor_of_a_process_that_joins(shop, profiles):
    first = shop.start("/bin/sleep", "1000")
    done = shop.exec(first, *TRIED, apparmorProfile=OTHER)
    assert done.out.splitlines() == ["one", "three", f"{OTHER} (enforce)"]


def test_apparmor_of_a_launcher_that_is_confined_itself_is_added_to(shop, profiles):
    shop.process.update(apparmorProfile=ONE, args=list(TRIED))
    shop.config["root"]["path"] = str(shop.rootfs)

    def launch(stdio):
        with open("/proc/self/attr/apparmor/current", "w") as file:
            file.write(f"changeprofile {OWN}")
        return launcher.launch(shop.config, -1, stdio, group=shop.group, cache=str(shop.cache))

    out, err = shop._fork(launch).read()
    *seen, current = out.splitlines()
    assert seen == ["two"], err
    assert sorted(current.removesuffix(" (enforce)").split("//&")) == sorted((ONE, OWN))


def test_apparmor_without_such_a_profile(shop, profiles):
    shop.process["apparmorProfile"] = "no-such"
    error = shop.refused()
    assert error.stage == "apparmor"
    assert "no-such: it is not loaded" in str(error)


# --- SELinux; the policy is that of tests/vm/selinux-policy

TASK = "system_u:system_r:container_t:s0:c1,c2"
FILES = "system_u:object_r:container_file_t:s0:c1,c2"
FOREIGN = "system_u:object_r:container_file_t:s0:c3,c4"


@pytest.fixture
def labelled(shop):
    if not labels.selinux():
        pytest.skip("this kernel runs no SELinux, or has no policy")
    for folder, folders, files in os.walk(shop.rootfs):
        for name in (".", *folders, *files):
            os.setxattr(f"{folder}/{name}", "security.selinux", FILES.encode(), follow_symlinks=False)
    os.setxattr(shop.rootfs / "srv/two", "security.selinux", FOREIGN.encode())
    enforce = Path("/sys/fs/selinux/enforce")
    before = enforce.read_text()
    enforce.write_text("1")
    shop.process["selinuxLabel"], shop.linux["mountLabel"] = TASK, FILES
    yield shop
    enforce.write_text(before)


def test_selinux_denies_what_is_of_other_categories(labelled):
    done = labelled.run(
        "/bin/sh", "-c", "cat /srv/one /srv/two /srv/three; cat /proc/self/attr/current; cat /proc/1/attr/exec"
    )
    assert done.out.replace("\0", "\n").splitlines()[:3] == ["one", "three", TASK], done
    assert "two" in done.err
    assert "Permission denied" in done.err


def test_selinux_of_mounts(labelled):
    done = labelled.run("/bin/sh", "-c", "cat /proc/self/mountinfo; touch /dev/shm/file && echo made")
    lines = {line.split()[4]: line for line in done.out.splitlines() if " - " in line}
    for place in ("/dev", "/dev/shm", "/dev/pts"):
        assert f'context="{FILES}"' in lines[place], lines[place]
    for place in ("/proc", "/sys", "/dev/mqueue"):
        assert "context=" not in lines[place]
    assert "made" in done.out.splitlines(), done


def test_selinux_of_a_process_that_joins(labelled):
    first = labelled.start("/bin/sleep", "1000")
    done = labelled.exec(first, "/bin/cat", "/proc/self/attr/current")
    assert done.out.rstrip("\0\n") == TASK


def test_selinux_of_the_session_keyring(labelled):
    """As the process itself does it, which nobody can watch: a label, then a keyring."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            proc = os.open("/proc", os.O_PATH)
            for label in labels.wanted({"selinuxLabel": TASK}, {}, keyring=True):
                label.open(proc)
                label.write()
            process.new_session_keyring()
            buffer = libc.ffi.new("char[]", 256)
            libc.syscall("keyctl", libc.KEYCTL, 17, -3, buffer, 256, 0)  # KEYCTL_GET_SECURITY of the session's
            os.write(write_end, libc.ffi.string(buffer))
        finally:
            os._exit(0)
    os.close(write_end)
    said = os.read(read_end, 256)
    os.close(read_end)
    os.waitpid(pid, 0)
    assert said.decode() == TASK


def test_selinux_without_such_a_label(labelled):
    labelled.process["selinuxLabel"] = "system_u:system_r:no_such_t:s0"
    error = labelled.refused()
    assert error.stage == "selinux"
    assert "the policy does not know it" in str(error)
